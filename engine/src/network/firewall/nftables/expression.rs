//! The expressions that rules are made of: each loads a register, compares one, or decides.
//!
//! Register 1 is sixteen bytes wide and is the same as the four-byte registers 8 to 11; register 2 follows it. Keys of
//! several parts are laid out in consecutive registers, each part padded to four bytes.

use super::batch::Attributes;

/// Where keys are put together.
pub(super) const FIRST: u32 = 1;
/// Behind a first part of four bytes.
pub(super) const SECOND_WORD: u32 = 9;
/// Behind two parts of four bytes.
pub(super) const THIRD_WORD: u32 = 10;
/// Behind a first part of sixteen bytes.
pub(super) const SECOND_NAME: u32 = 2;

/// The same place, as the number of its first four bytes.
pub(super) const SECOND_NAME_WORD: u32 = 12;
/// Behind a first part of sixteen bytes and one of four.
pub(super) const AFTER_NAME: u32 = 13;

/// What `meta` loads (`enum nft_meta_keys`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Meta {
    InputName = 6,
    OutputName = 7,
    Family = 15,
    Protocol = 16,
}

/// What `payload` loads: base (`enum nft_payload_bases`), offset, length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field(u32, u32, u32);

impl Field {
    /// Source and destination of IPv4, and the first byte of each.
    pub(super) const SOURCE: Field = Field(1, 12, 4);
    pub(super) const DESTINATION: Field = Field(1, 16, 4);
    pub(super) const SOURCE_FIRST: Field = Field(1, 12, 1);
    pub(super) const DESTINATION_FIRST: Field = Field(1, 16, 1);
    /// Source and destination of IPv6, and the first byte of the latter.
    pub(super) const SOURCE6: Field = Field(1, 8, 16);
    pub(super) const DESTINATION6: Field = Field(1, 24, 16);
    pub(super) const DESTINATION6_FIRST: Field = Field(1, 24, 1);
    /// Of TCP, UDP and SCTP alike.
    pub(super) const DESTINATION_PORT: Field = Field(2, 2, 2);
}

/// What `ct` loads (`enum nft_ct_keys`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Connection {
    State = 0,
    Status = 2,
}

/// Bits of [`Connection::State`] for ESTABLISHED and RELATED.
pub(super) const KNOWN: u32 = 2 | 4;
/// Bit of [`Connection::Status`]: the destination was translated (`IPS_DST_NAT`).
pub(super) const TRANSLATED: u32 = 32;

/// A verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Drop,
    Accept,
    Jump(&'static str),
}

/// One expression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expression {
    /// Loads a property of the packet.
    Meta(Meta, u32),
    /// Loads a field of the packet.
    Payload(Field, u32),
    /// Goes on if the byte in the first register is this one (or is not).
    Byte { value: u8, is: bool },
    /// Goes on if the first register is in the set (or is not).
    InSet { set: &'static str, is: bool },
    /// Replaces the first registers by what the map has for them; goes on if it has.
    Map(&'static str),
    /// Goes on if one of these bits of the connection is set.
    Connection(Connection, u32),
    /// Goes on if the destination is an address of this host.
    ToThisHost,
    /// Translates the destination to the address in the first register, the port in the second word.
    TranslateDestination,
    /// The same for IPv6, whose addresses take sixteen bytes: the port in the word behind.
    TranslateDestination6,
    /// Translates the source to the address of the outgoing interface.
    Masquerade,
    /// Decides.
    Verdict(Verdict),
}

impl Expression {
    /// As an element of a rule's list.
    pub(super) fn encode(self) -> Attributes {
        let (name, data) = self.name_and_data();
        // NFTA_EXPR_NAME, NFTA_EXPR_DATA
        let expression = Attributes::new().text(1, name).nested(2, &data);
        // NFTA_LIST_ELEM
        Attributes::new().nested(1, &expression)
    }

    /// Attribute numbers are those of each expression's `enum nft_…_attributes`, in the order given there.
    fn name_and_data(self) -> (&'static str, Attributes) {
        let list = Attributes::new;
        match self {
            Expression::Meta(key, register) => {
                ("meta", list().number(1, register).number(2, key as u32))
            }
            Expression::Payload(Field(base, offset, length), register) => {
                let data = list().number(1, register).number(2, base);
                ("payload", data.number(3, offset).number(4, length))
            }
            Expression::Byte { value, is } => {
                let data = list().number(1, FIRST).number(2, u32::from(!is));
                ("cmp", data.nested(3, &self::value(&[value])))
            }
            Expression::InSet { set, is } => {
                let data = list().text(1, set).number(2, FIRST);
                ("lookup", data.number(5, u32::from(!is)))
            }
            Expression::Map(map) => (
                "lookup",
                list().text(1, map).number(2, FIRST).number(3, FIRST),
            ),
            Expression::Connection(key, _) => ("ct", list().number(1, FIRST).number(2, key as u32)),
            Expression::ToThisHost => {
                // Type of the destination address: NFT_FIB_RESULT_ADDRTYPE, NFTA_FIB_F_DADDR.
                ("fib", list().number(1, FIRST).number(2, 3).number(3, 2))
            }
            Expression::TranslateDestination => {
                // NFT_NAT_DNAT, NFPROTO_IPV4
                let data = list().number(1, 1).number(2, 2);
                ("nat", data.number(3, FIRST).number(5, SECOND_WORD))
            }
            Expression::TranslateDestination6 => {
                // NFT_NAT_DNAT, NFPROTO_IPV6
                let data = list().number(1, 1).number(2, 10);
                ("nat", data.number(3, FIRST).number(5, SECOND_NAME_WORD))
            }
            Expression::Masquerade => ("masq", list()),
            Expression::Verdict(verdict) => {
                // NFT_REG_VERDICT; NFTA_DATA_VERDICT
                let data = list().nested(2, &encode_verdict(verdict));
                ("immediate", list().number(1, 0).nested(2, &data))
            }
        }
    }

    /// What has to follow for the expression to mean what it says: numbers in registers are in the host's byte order,
    /// and testing bits takes two more steps.
    fn rest(self) -> Vec<Attributes> {
        let step = |name, data: Attributes| {
            Attributes::new().nested(1, &Attributes::new().text(1, name).nested(2, &data))
        };
        let compare = |operator: u32, number: u32| {
            let data = Attributes::new().number(1, FIRST).number(2, operator);
            step("cmp", data.nested(3, &value(&number.to_ne_bytes())))
        };
        match self {
            Expression::Connection(_, bits) => {
                let mask = Attributes::new()
                    .number(1, FIRST)
                    .number(2, FIRST)
                    .number(3, 4);
                let mask = mask
                    .nested(4, &value(&bits.to_ne_bytes()))
                    .nested(5, &value(&[0; 4]));
                vec![step("bitwise", mask), compare(1, 0)]
            }
            // RTN_LOCAL
            Expression::ToThisHost => vec![compare(0, 2)],
            _ => Vec::new(),
        }
    }

    /// As the elements of a rule's list.
    pub(super) fn steps(self) -> Vec<Attributes> {
        let mut steps = vec![self.encode()];
        steps.extend(self.rest());
        steps
    }
}

/// NFTA_DATA_VALUE
pub(super) fn value(bytes: &[u8]) -> Attributes {
    Attributes::new().bytes(1, bytes)
}

/// NFTA_VERDICT_CODE, NFTA_VERDICT_CHAIN
fn encode_verdict(verdict: Verdict) -> Attributes {
    match verdict {
        Verdict::Drop => Attributes::new().number(1, 0),
        Verdict::Accept => Attributes::new().number(1, 1),
        // NFT_JUMP
        Verdict::Jump(chain) => Attributes::new().signed(1, -3).text(2, chain),
    }
}
