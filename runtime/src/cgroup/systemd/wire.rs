//! D-Bus messages as bytes: of the wire format what a client of systemd needs, in both directions.
//!
//! Pure. Written in little-endian; read in either order, because the bus passes on what a peer has sent. Governing text: the
//! D-Bus specification, "Marshaling (Wire Format)" and "Message Format".

use std::collections::VecDeque;

/// The kinds of message (first field of the D-Bus specification's table "Message Types").
pub(super) mod kind {
    /// A call.
    pub(in super::super) const CALL: u8 = 1;
    /// Its answer.
    pub(in super::super) const RETURN: u8 = 2;
    /// Its failure.
    pub(in super::super) const ERROR: u8 = 3;
    /// A signal.
    pub(in super::super) const SIGNAL: u8 = 4;
}

/// Codes of header fields.
mod field {
    pub(super) const PATH: u8 = 1;
    pub(super) const INTERFACE: u8 = 2;
    pub(super) const MEMBER: u8 = 3;
    pub(super) const ERROR_NAME: u8 = 4;
    pub(super) const REPLY_SERIAL: u8 = 5;
    pub(super) const DESTINATION: u8 = 6;
    pub(super) const SIGNATURE: u8 = 8;
}

/// Everything before the header fields: order, kind, flags, version, length of the body, serial, length of the fields.
pub(super) const FIXED: usize = 16;
/// The specification's greatest length of a message, 128 MiB; none that is meant for us comes near to 1 MiB.
const LONGEST: usize = 1 << 20;

/// A value, with its type.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::cgroup) enum Value {
    /// `y`
    Byte(u8),
    /// `b`
    Bool(bool),
    /// `n`
    I16(i16),
    /// `q`
    U16(u16),
    /// `i`
    I32(i32),
    /// `u`
    U32(u32),
    /// `x`
    I64(i64),
    /// `t`
    U64(u64),
    /// `d`
    Double(f64),
    /// `s`
    Text(String),
    /// `o`
    Path(String),
    /// `g`
    Signature(String),
    /// `a…`, with the signature of the elements, which an empty one needs too.
    Array(String, Vec<Value>),
    /// `(…)`
    Struct(Vec<Value>),
    /// `v`
    Variant(Box<Value>),
}

impl Value {
    /// A string.
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// Its type, as signatures spell it.
    pub(super) fn signature(&self) -> String {
        match self {
            Self::Byte(_) => "y".into(),
            Self::Bool(_) => "b".into(),
            Self::I16(_) => "n".into(),
            Self::U16(_) => "q".into(),
            Self::I32(_) => "i".into(),
            Self::U32(_) => "u".into(),
            Self::I64(_) => "x".into(),
            Self::U64(_) => "t".into(),
            Self::Double(_) => "d".into(),
            Self::Text(_) => "s".into(),
            Self::Path(_) => "o".into(),
            Self::Signature(_) => "g".into(),
            Self::Array(element, _) => format!("a{element}"),
            Self::Struct(fields) => format!("({})", signature_of(fields)),
            Self::Variant(_) => "v".into(),
        }
    }

    fn alignment(&self) -> usize {
        alignment(self.signature().as_bytes()[0])
    }

    /// Appends the value; `out` has to begin where the message or its body does.
    fn write(&self, out: &mut Vec<u8>) {
        pad(out, self.alignment());
        match self {
            Self::Byte(value) => out.push(*value),
            Self::Bool(value) => out.extend(u32::from(*value).to_le_bytes()),
            Self::I16(value) => out.extend(value.to_le_bytes()),
            Self::U16(value) => out.extend(value.to_le_bytes()),
            Self::I32(value) => out.extend(value.to_le_bytes()),
            Self::U32(value) => out.extend(value.to_le_bytes()),
            Self::I64(value) => out.extend(value.to_le_bytes()),
            Self::U64(value) => out.extend(value.to_le_bytes()),
            Self::Double(value) => out.extend(value.to_le_bytes()),
            Self::Text(text) | Self::Path(text) => {
                out.extend(length(text.len()).to_le_bytes());
                out.extend(text.as_bytes());
                out.push(0);
            }
            Self::Signature(text) => write_signature(text, out),
            Self::Array(element, values) => {
                let at = out.len();
                out.extend([0; 4]);
                // The padding up to the first element does not count, and is there without elements too.
                pad(out, alignment(element.as_bytes()[0]));
                let start = out.len();
                values.iter().for_each(|value| value.write(out));
                let size = length(out.len() - start);
                out[at..at + 4].copy_from_slice(&size.to_le_bytes());
            }
            Self::Struct(fields) => fields.iter().for_each(|field| field.write(out)),
            Self::Variant(value) => {
                write_signature(&value.signature(), out);
                value.write(out);
            }
        }
    }
}

/// The signature of several values in a row.
fn signature_of(values: &[Value]) -> String {
    values.iter().map(Value::signature).collect()
}

fn write_signature(text: &str, out: &mut Vec<u8>) {
    // At most 255 by the specification; ours have a dozen characters, and annotations are held to it when they are read.
    out.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
    out.extend(text.as_bytes());
    out.push(0);
}

fn length(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn pad(out: &mut Vec<u8>, alignment: usize) {
    out.resize(out.len().next_multiple_of(alignment), 0);
}

/// Alignment of a type, by the first character of its signature.
fn alignment(code: u8) -> usize {
    match code {
        b'n' | b'q' => 2,
        b'b' | b'i' | b'u' | b's' | b'o' | b'a' | b'h' => 4,
        b'x' | b't' | b'd' | b'(' | b'{' => 8,
        _ => 1,
    }
}

/// A call of a method.
#[derive(Debug)]
pub(super) struct Call<'a> {
    /// Whom it is for; nobody in particular on a connection without a bus.
    pub(super) destination: Option<&'a str>,
    /// Object.
    pub(super) path: &'a str,
    /// Interface.
    pub(super) interface: &'a str,
    /// Method.
    pub(super) member: &'a str,
    /// Arguments.
    pub(super) arguments: &'a [Value],
}

impl Call<'_> {
    /// The whole message.
    pub(super) fn encode(&self, serial: u32) -> Vec<u8> {
        let mut body = Vec::new();
        self.arguments
            .iter()
            .for_each(|value| value.write(&mut body));
        let field =
            |code, value| Value::Struct(vec![Value::Byte(code), Value::Variant(Box::new(value))]);
        let mut fields = vec![
            field(field::PATH, Value::Path(self.path.to_owned())),
            field(field::INTERFACE, Value::text(self.interface)),
            field(field::MEMBER, Value::text(self.member)),
        ];
        if let Some(destination) = self.destination {
            fields.push(field(field::DESTINATION, Value::text(destination)));
        }
        if !self.arguments.is_empty() {
            let signature = signature_of(self.arguments);
            fields.push(field(field::SIGNATURE, Value::Signature(signature)));
        }
        let mut message = vec![b'l', kind::CALL, 0, 1];
        message.extend(length(body.len()).to_le_bytes());
        message.extend(serial.to_le_bytes());
        Value::Array("(yv)".to_owned(), fields).write(&mut message);
        pad(&mut message, 8);
        message.extend(body);
        message
    }
}

/// A message that came in: of its header what is of interest, and its body.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Message {
    /// See [`kind`].
    pub(super) kind: u8,
    /// The serial of the call that this answers.
    pub(super) reply_to: u32,
    /// Name of an error.
    pub(super) error: String,
    /// Name of a signal.
    pub(super) member: String,
    /// Values of the body up to the first of a type that nobody here asks for.
    pub(super) body: VecDeque<Value>,
}

/// A message that is not as the specification has it, or longer than any that could be meant for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// How long a message is in all, by its first [`FIXED`] bytes.
pub(super) fn total_length(start: &[u8; FIXED]) -> Result<usize, Malformed> {
    let mut reader = Reader::new(start)?;
    reader.at = 4;
    let body = reader.u32()?;
    reader.at = 12;
    let fields = reader.u32()?;
    let size = |size| usize::try_from(size).map_err(|_| Malformed);
    let total = size(fields)?
        .checked_add(FIXED)
        .and_then(|header| header.next_multiple_of(8).checked_add(size(body).ok()?))
        .ok_or(Malformed)?;
    if total > LONGEST {
        Err(Malformed)
    } else {
        Ok(total)
    }
}

/// Reads a whole message.
pub(super) fn decode(bytes: &[u8]) -> Result<Message, Malformed> {
    let mut reader = Reader::new(bytes)?;
    let mut message = Message {
        kind: *bytes.get(1).ok_or(Malformed)?,
        ..Message::default()
    };
    reader.at = 12;
    let end = FIXED + usize::try_from(reader.u32()?).map_err(|_| Malformed)?;
    let mut signature = String::new();
    while reader.at < end {
        reader.align(8)?;
        let code = reader.byte()?;
        let kind = reader.signature()?;
        let value = reader.value(&kind)?.ok_or(Malformed)?;
        match (code, value) {
            (field::MEMBER, Value::Text(text)) => message.member = text,
            (field::ERROR_NAME, Value::Text(text)) => message.error = text,
            (field::REPLY_SERIAL, Value::U32(serial)) => message.reply_to = serial,
            (field::SIGNATURE, Value::Signature(text)) => signature = text,
            _ => {}
        }
    }
    reader.at = end.next_multiple_of(8);
    for code in signature.chars() {
        // The types of the answers and signals in use are single letters; what follows another is not looked at.
        match reader.value(code.encode_utf8(&mut [0; 4]))? {
            Some(value) => message.body.push_back(value),
            None => break,
        }
    }
    Ok(message)
}

/// Reads values one after the other.
struct Reader<'a> {
    bytes: &'a [u8],
    big_endian: bool,
    at: usize,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let big_endian = match bytes.first() {
            Some(b'l') => false,
            Some(b'B') => true,
            _ => return Err(Malformed),
        };
        Ok(Self {
            bytes,
            big_endian,
            at: 0,
        })
    }

    fn align(&mut self, alignment: usize) -> Result<(), Malformed> {
        self.at = self.at.next_multiple_of(alignment);
        if self.at > self.bytes.len() {
            Err(Malformed)
        } else {
            Ok(())
        }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let end = self.at.checked_add(count).ok_or(Malformed)?;
        let taken = self.bytes.get(self.at..end).ok_or(Malformed)?;
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.align(4)?;
        let bytes = self.take(4)?.try_into().map_err(|_| Malformed)?;
        Ok(match self.big_endian {
            true => u32::from_be_bytes(bytes),
            false => u32::from_le_bytes(bytes),
        })
    }

    fn text_of(&mut self, length: usize) -> Result<String, Malformed> {
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| Malformed)?;
        // The zero behind it.
        self.take(1)?;
        Ok(text.to_owned())
    }

    fn signature(&mut self) -> Result<String, Malformed> {
        let length = self.byte()?;
        self.text_of(length.into())
    }

    /// One value; `None` for a type that is not read.
    fn value(&mut self, signature: &str) -> Result<Option<Value>, Malformed> {
        Ok(Some(match signature {
            "u" => Value::U32(self.u32()?),
            "s" | "o" => {
                let length = usize::try_from(self.u32()?).map_err(|_| Malformed)?;
                let text = self.text_of(length)?;
                if signature == "s" {
                    Value::Text(text)
                } else {
                    Value::Path(text)
                }
            }
            "g" => Value::Signature(self.signature()?),
            "v" => {
                let inner = self.signature()?;
                // A variant in a variant would let the depth of the recursion come from outside.
                match inner.as_str() {
                    "v" => return Ok(None),
                    inner => match self.value(inner)? {
                        Some(value) => Value::Variant(Box::new(value)),
                        None => return Ok(None),
                    },
                }
            }
            _ => return Ok(None),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(value: &Value) -> Vec<u8> {
        let mut out = Vec::new();
        value.write(&mut out);
        out
    }

    #[test]
    fn values_as_bytes() {
        let variant = |value| Value::Variant(Box::new(value));
        for (value, signature, expected) in [
            (Value::Byte(7), "y", vec![7]),
            (Value::Bool(true), "b", vec![1, 0, 0, 0]),
            (Value::U16(258), "q", vec![2, 1]),
            (Value::I32(-2), "i", vec![254, 255, 255, 255]),
            (Value::U64(1), "t", vec![1, 0, 0, 0, 0, 0, 0, 0]),
            (Value::Double(1.0), "d", vec![0, 0, 0, 0, 0, 0, 0xf0, 0x3f]),
            (Value::text("ab"), "s", vec![2, 0, 0, 0, b'a', b'b', 0]),
            (Value::Signature("as".into()), "g", vec![2, b'a', b's', 0]),
            (variant(Value::U32(5)), "v", vec![1, b'u', 0, 0, 5, 0, 0, 0]),
            (
                Value::Array("y".into(), vec![Value::Byte(3), Value::Byte(4)]),
                "ay",
                vec![2, 0, 0, 0, 3, 4],
            ),
            // Padded up to where the first element would be.
            (Value::Array("(ss)".into(), vec![]), "a(ss)", vec![0; 8]),
            (
                Value::Array("t".into(), vec![Value::U64(9)]),
                "at",
                vec![8, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0],
            ),
            (
                Value::Struct(vec![Value::Byte(1), Value::U32(2)]),
                "(yu)",
                vec![1, 0, 0, 0, 2, 0, 0, 0],
            ),
        ] {
            assert_eq!(value.signature(), signature);
            assert_eq!(bytes(&value), expected, "{value:?}");
        }
    }

    #[test]
    fn a_call_begins_as_the_specification_says() {
        let call = Call {
            destination: Some("a.b"),
            path: "/p",
            interface: "i.j",
            member: "M",
            arguments: &[Value::text("x"), Value::U32(1)],
        };
        let message = call.encode(3);
        assert_eq!(message[..4], [b'l', kind::CALL, 0, 1]);
        // "x" with its length and zero, padding, the number.
        assert_eq!(message[4..8], [12, 0, 0, 0]);
        assert_eq!(message[8..12], [3, 0, 0, 0]);
        assert_eq!(
            message[message.len() - 12..],
            [1, 0, 0, 0, b'x', 0, 0, 0, 1, 0, 0, 0]
        );
        let start = message[..FIXED].try_into().unwrap();
        assert_eq!(total_length(start), Ok(message.len()));
        let read = decode(&message).unwrap();
        assert_eq!((read.kind, read.member.as_str()), (kind::CALL, "M"));
        assert_eq!(read.body, [Value::text("x"), Value::U32(1)]);
    }

    /// What systemd sends when a job is over, in the order of a big-endian machine.
    #[test]
    fn a_signal_from_the_other_order() {
        let mut message = vec![
            b'B',
            kind::SIGNAL,
            1,
            1,
            0,
            0,
            0,
            8,
            0,
            0,
            0,
            9,
            0,
            0,
            0,
            24,
        ];
        message.extend([
            field::MEMBER,
            1,
            b's',
            0,
            0,
            0,
            0,
            3,
            b'J',
            b'o',
            b'b',
            0,
            0,
            0,
            0,
            0,
        ]);
        message.extend([field::SIGNATURE, 1, b'g', 0, 2, b'u', b'a', 0]);
        message.extend([0, 0, 0, 5, 0, 0, 0, 0]);
        let read = decode(&message).unwrap();
        assert_eq!((read.kind, read.member.as_str()), (kind::SIGNAL, "Job"));
        // The array is of no interest.
        assert_eq!(read.body, [Value::U32(5)]);
    }

    #[test]
    fn broken_messages_are_refused() {
        let call = Call {
            destination: None,
            path: "/p",
            interface: "i.j",
            member: "M",
            arguments: &[Value::text("text")],
        };
        let whole = call.encode(1);
        for end in 0..whole.len() {
            assert_eq!(decode(&whole[..end]), Err(Malformed), "{end} bytes");
        }
        let mut long = whole.clone();
        long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(
            total_length(long[..FIXED].try_into().unwrap()),
            Err(Malformed)
        );
        assert_eq!(decode(b"x"), Err(Malformed));
    }
}
