//! DNS messages: what is asked, and our own answers.
//!
//! Only the header and the one question of a query are looked at. All the rest of it, which a client may fill with
//! anything, is passed on as it came or not at all.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use simple_dns::rdata::{A, AAAA, PTR, RData};
use simple_dns::{
    CLASS, Name, OPCODE, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, ResourceRecord, TYPE,
};

/// The shortest message there is: a header alone.
pub(super) const HEADER: usize = 12;

/// What a client that speaks UDP takes without having said more (RFC 1035, 4.2.1).
pub(super) const UDP_LIMIT: usize = 512;

/// Seconds that an answer of ours may be kept: containers come and go at any moment.
const TTL: u32 = 0;

/// A query with one question.
#[derive(Debug)]
pub(super) struct Query {
    id: u16,
    recursion_desired: bool,
    question: Question<'static>,
    /// The name asked for, in lower case, without the last dot. `None` when it has letters that no name of ours has.
    pub(super) name: Option<String>,
    /// Bytes of the question, which a reply has to repeat.
    pub(super) question_length: usize,
}

/// What is asked about a name, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Its IPv4 addresses.
    Ipv4,
    /// Its IPv6 addresses.
    Ipv6,
    /// All there is.
    Any,
    /// The name behind an address.
    Pointer,
    /// Something that containers have none of.
    Other,
}

/// A message that is no query to be worked on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Not even worth an answer: too short, or an answer itself, which must never be answered.
    Silence,
    /// This is the answer.
    Reply(Vec<u8>),
}

/// Takes a query apart.
pub(super) fn parse(message: &[u8]) -> Result<Query, Refusal> {
    let Some(header) = message.get(..HEADER) else {
        return Err(Refusal::Silence);
    };
    let flags = u16::from_be_bytes([header[2], header[3]]);
    if flags & PacketFlag::RESPONSE.bits() != 0 {
        return Err(Refusal::Silence);
    }
    let id = u16::from_be_bytes([header[0], header[1]]);
    let refuse = |code| Refusal::Reply(error(id, None, false, code));
    let questions = u16::from_be_bytes([header[4], header[5]]);
    // A copy that ends with its question: counts of 1, 0, 0 and 0.
    let mut head = message.to_vec();
    head[4..HEADER].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
    // The one bit that is reserved and to be ignored.
    head[3] &= !0x40;
    let packet = Packet::parse(&head).map_err(|_| refuse(RCODE::FormatError))?;
    if packet.opcode() != OPCODE::StandardQuery {
        return Err(refuse(RCODE::NotImplemented));
    }
    let [question] = packet.questions.as_slice() else {
        return Err(refuse(RCODE::FormatError));
    };
    if questions != 1 {
        return Err(refuse(RCODE::FormatError));
    }
    let question = question.clone().into_owned();
    let labels = question.qname.get_labels();
    let name_length: usize = labels.iter().map(|label| label.as_ref().len() + 1).sum();
    Ok(Query {
        id,
        recursion_desired: packet.has_flags(PacketFlag::RECURSION_DESIRED),
        name: plain(&question.qname),
        question_length: name_length + 1 + 4,
        question,
    })
}

/// A name of letters, digits, `-` and `_` as text; `None` for any other.
fn plain(name: &Name<'_>) -> Option<String> {
    let mut text = String::new();
    for label in name.get_labels() {
        if !text.is_empty() {
            text.push('.');
        }
        for &byte in label.as_ref() {
            if !byte.is_ascii_alphanumeric() && !matches!(byte, b'-' | b'_') {
                return None;
            }
            text.push(char::from(byte.to_ascii_lowercase()));
        }
    }
    Some(text)
}

impl Query {
    /// What is asked about the name.
    pub(super) fn kind(&self) -> Kind {
        match self.question.qtype {
            QTYPE::TYPE(TYPE::A) => Kind::Ipv4,
            QTYPE::TYPE(TYPE::AAAA) => Kind::Ipv6,
            QTYPE::TYPE(TYPE::PTR) => Kind::Pointer,
            QTYPE::ANY => Kind::Any,
            _ => Kind::Other,
        }
    }

    /// Whether it is about the Internet's names at all.
    pub(super) fn is_internet(&self) -> bool {
        matches!(self.question.qclass, QCLASS::CLASS(CLASS::IN) | QCLASS::ANY)
    }

    /// The answer that lists those of `addresses` that were asked for; possibly none.
    pub(super) fn addresses(&self, addresses: &[IpAddr], limit: usize) -> Vec<u8> {
        let kind = self.kind();
        let data = addresses
            .iter()
            .filter_map(|address| match (address, kind) {
                (IpAddr::V4(address), Kind::Ipv4 | Kind::Any) => Some(RData::A(A {
                    address: address.to_bits(),
                })),
                (IpAddr::V6(address), Kind::Ipv6 | Kind::Any) => Some(RData::AAAA(AAAA {
                    address: address.to_bits(),
                })),
                _ => None,
            });
        self.reply(data.collect(), limit)
    }

    /// The answer to a question for the name behind an address.
    pub(super) fn pointer(&self, name: &str, limit: usize) -> Vec<u8> {
        let data = Name::new(name).map(|name| RData::PTR(PTR(name.into_owned())));
        self.reply(data.into_iter().collect(), limit)
    }

    /// There is no such name.
    pub(super) fn no_such_name(&self) -> Vec<u8> {
        self.error(RCODE::NameError)
    }

    /// Nobody who could be asked has answered.
    pub(super) fn server_failure(&self) -> Vec<u8> {
        self.error(RCODE::ServerFailure)
    }

    /// It is not answered here.
    pub(super) fn refused(&self) -> Vec<u8> {
        self.error(RCODE::Refused)
    }

    fn error(&self, code: RCODE) -> Vec<u8> {
        error(self.id, Some(&self.question), self.recursion_desired, code)
    }

    fn reply(&self, data: Vec<RData<'static>>, limit: usize) -> Vec<u8> {
        let mut packet = head(self.id, Some(&self.question), self.recursion_desired);
        packet.set_flags(PacketFlag::AUTHORITATIVE_ANSWER);
        let name = &self.question.qname;
        let record = |data| ResourceRecord::new(name.clone(), CLASS::IN, TTL, data);
        packet.answers = data.into_iter().map(record).collect();
        let bytes = packet.build_bytes_vec_compressed().unwrap_or_default();
        if bytes.len() <= limit {
            return bytes;
        }
        // As many as fit, and word that there are more: the client comes again by TCP.
        packet.set_flags(PacketFlag::TRUNCATION);
        while packet.answers.pop().is_some() {
            let bytes = packet.build_bytes_vec_compressed().unwrap_or_default();
            if bytes.len() <= limit {
                return bytes;
            }
        }
        self.server_failure()
    }
}

fn head<'a>(id: u16, question: Option<&Question<'a>>, recursion_desired: bool) -> Packet<'a> {
    let mut packet = Packet::new_reply(id);
    packet.set_flags(PacketFlag::RECURSION_AVAILABLE);
    if recursion_desired {
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
    }
    packet.questions.extend(question.cloned());
    packet
}

fn error(
    id: u16,
    question: Option<&Question<'_>>,
    recursion_desired: bool,
    code: RCODE,
) -> Vec<u8> {
    let mut packet = head(id, question, recursion_desired);
    *packet.rcode_mut() = code;
    packet.build_bytes_vec().unwrap_or_default()
}

/// The address that a name below `in-addr.arpa` or `ip6.arpa` stands for.
pub(super) fn reversed(name: &str) -> Option<IpAddr> {
    if let Some(digits) = name.strip_suffix(".in-addr.arpa") {
        let mut octets = [0u8; 4];
        let mut labels = digits.split('.');
        for octet in octets.iter_mut().rev() {
            *octet = labels.next()?.parse().ok()?;
        }
        return labels
            .next()
            .is_none()
            .then(|| Ipv4Addr::from(octets).into());
    }
    let digits = name.strip_suffix(".ip6.arpa")?;
    let mut bits = 0u128;
    let mut count = 0;
    for label in digits.split('.') {
        if label.len() != 1 || count == 32 {
            return None;
        }
        let digit = u128::from_str_radix(label, 16).ok()?;
        bits |= digit << (4 * count);
        count += 1;
    }
    (count == 32).then(|| Ipv6Addr::from_bits(bits).into())
}

/// A query with another id, for the way to a server: nobody who did not see it can guess an answer.
pub(super) fn with_id(message: &[u8], id: [u8; 2]) -> Cow<'_, [u8]> {
    let mut message = message.to_vec();
    if let Some(place) = message.get_mut(..2) {
        place.copy_from_slice(&id);
    }
    Cow::Owned(message)
}

/// Whether `reply` answers `query`, a message with a question of that length: same id, same question, an answer.
pub(super) fn answers(reply: &[u8], query: &[u8], question_length: usize) -> bool {
    let question = |message: &[u8]| {
        message
            .get(HEADER..HEADER + question_length)
            .map(<[u8]>::to_ascii_lowercase)
    };
    reply.len() >= HEADER
        && reply.get(..2) == query.get(..2)
        && reply[2] & 0x80 != 0
        && question(reply).is_some()
        && question(reply) == question(query)
}

/// Whether a server has said that it can't or won't help, so that another one may.
pub(super) fn is_failure(reply: &[u8]) -> bool {
    // SERVFAIL, NOTIMP, REFUSED
    reply
        .get(3)
        .is_none_or(|flags| matches!(flags & 0xf, 2 | 4 | 5))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn query(name: &str, kind: TYPE) -> Vec<u8> {
        let mut packet = Packet::new_query(0x1234);
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
        packet.questions.push(Question::new(
            Name::new(name).unwrap(),
            QTYPE::TYPE(kind),
            QCLASS::CLASS(CLASS::IN),
            false,
        ));
        packet.build_bytes_vec().unwrap()
    }

    fn code(reply: &[u8]) -> u8 {
        reply[3] & 0xf
    }

    #[test]
    fn names_are_read_in_lower_case_and_only_if_plain() {
        for (asked, read) in [
            ("Web", Some("web")),
            ("a_b.my-NET.", Some("a_b.my-net")),
            ("..", Some("")),
            ("a/../b", None),
            (r"a\.b", None),
            (r"\000", None),
        ] {
            let query = parse(&query(asked, TYPE::A)).unwrap();
            assert_eq!(query.name.as_deref(), read, "{asked}");
        }
    }

    #[test]
    fn addresses_of_the_family_asked_for() {
        let both = ["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        for (kind, count) in [(TYPE::A, 1), (TYPE::AAAA, 1), (TYPE::MX, 0)] {
            let query = parse(&query("web", kind)).unwrap();
            let bytes = query.addresses(&both, UDP_LIMIT);
            let reply = Packet::parse(&bytes).unwrap();
            assert_eq!(reply.id(), 0x1234);
            assert_eq!(reply.answers.len(), count, "{kind:?}");
            assert_eq!(code(&bytes), 0);
            assert!(reply.has_flags(PacketFlag::RESPONSE | PacketFlag::RECURSION_DESIRED));
        }
    }

    #[test]
    fn more_than_fits_is_cut_and_says_so() {
        let many: Vec<IpAddr> = (0..100)
            .map(|n| Ipv4Addr::new(10, 0, 0, n).into())
            .collect();
        let query = parse(&query("web", TYPE::A)).unwrap();
        let bytes = query.addresses(&many, UDP_LIMIT);
        assert!(
            bytes.len() <= UDP_LIMIT && bytes.len() > 400,
            "{}",
            bytes.len()
        );
        assert!(
            Packet::parse(&bytes)
                .unwrap()
                .has_flags(PacketFlag::TRUNCATION)
        );
        let whole = query.addresses(&many, usize::from(u16::MAX));
        assert_eq!(Packet::parse(&whole).unwrap().answers.len(), 100);
    }

    #[test]
    fn what_is_no_query_is_refused_or_ignored() {
        assert_eq!(parse(b"short").unwrap_err(), Refusal::Silence);
        let mut reply = query("web", TYPE::A);
        reply[2] |= 0x80;
        assert_eq!(parse(&reply).unwrap_err(), Refusal::Silence);
        let mut two = query("web", TYPE::A);
        two[5] = 2;
        let mut none = query("web", TYPE::A);
        none[5] = 0;
        let mut cut = query("web", TYPE::A);
        cut.truncate(14);
        let mut loops = query("web", TYPE::A);
        // A name that is a pointer to itself.
        loops[12..14].copy_from_slice(&[0xc0, 12]);
        for message in [two, none, cut, loops] {
            let Refusal::Reply(reply) = parse(&message).unwrap_err() else {
                panic!("an answer is due to {message:?}");
            };
            assert_eq!((&reply[..2], code(&reply)), (&[0x12, 0x34][..], 1));
        }
        let mut notify = query("web", TYPE::A);
        notify[2] = 4 << 3;
        let Refusal::Reply(reply) = parse(&notify).unwrap_err() else {
            panic!("an answer is due");
        };
        assert_eq!(code(&reply), 4);
    }

    #[test]
    fn counts_that_lie_cost_nothing() {
        let mut message = query("web", TYPE::A);
        message[6..12].fill(0xff);
        assert_eq!(parse(&message).unwrap().name.as_deref(), Some("web"));
    }

    #[test]
    fn no_message_makes_it_panic() {
        let mut state = 1u32;
        for round in 0..20_000 {
            let mut message = query("some.name.of.us", TYPE::A);
            for _ in 0..=round % 5 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let bytes = state.to_be_bytes();
                let at = usize::from(bytes[0]) % message.len();
                message[at] = bytes[1];
            }
            message.truncate(usize::try_from(state >> 8).unwrap() % 64);
            drop(parse(&message));
        }
    }

    #[test]
    fn reverse_names() {
        for (name, address) in [
            ("2.0.200.10.in-addr.arpa", Some("10.200.0.2")),
            ("200.10.in-addr.arpa", None),
            ("1.2.0.200.10.in-addr.arpa", None),
            ("256.0.200.10.in-addr.arpa", None),
            (
                "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.2.7.0.0.0.0.d.f.ip6.arpa",
                Some("fd00:72::2"),
            ),
            ("2.0.0.0.ip6.arpa", None),
            ("web", None),
        ] {
            assert_eq!(
                reversed(name),
                address.map(|text| text.parse().unwrap()),
                "{name}"
            );
        }
    }

    #[test]
    fn only_the_answer_to_the_question_counts() {
        let asked = with_id(&query("Example.org", TYPE::A), [7, 7]).into_owned();
        let length = parse(&asked).unwrap().question_length;
        let mut reply = asked.to_ascii_lowercase();
        assert!(!answers(&reply, &asked, length), "a query is no answer");
        reply[2] |= 0x80;
        assert!(answers(&reply, &asked, length));
        let mut other_id = reply.clone();
        other_id[0] = 8;
        assert!(!answers(&other_id, &asked, length));
        let mut other_name = reply.clone();
        other_name[14] = b'z';
        assert!(!answers(&other_name, &asked, length));
        assert!(!answers(&reply[..20], &asked, length));
    }
}
