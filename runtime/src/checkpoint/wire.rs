//! Protocol buffers, as much as criu's messages need: varints and length-delimited fields of proto2.
//!
//! Governing text: protobuf.dev "Encoding". Field numbers and meanings are in [`super::message`].

/// A message being put together. Members are in the order in which they were added, which the format leaves free.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Message(Vec<u8>);

/// Wire type of numbers, booleans and enumerations.
const VARINT: u64 = 0;
/// Wire type of eight bytes, which no message of criu's has.
const EIGHT_BYTES: u64 = 1;
/// Wire type of texts and messages.
const DELIMITED: u64 = 2;
/// Wire type of four bytes, likewise.
const FOUR_BYTES: u64 = 5;

impl Message {
    /// Adds a number that is not negative, or the number of an enumerator.
    pub(super) fn number(&mut self, field: u32, value: u32) -> &mut Self {
        self.key(field, VARINT);
        self.varint(value.into());
        self
    }

    /// Adds a switch.
    pub(super) fn switch(&mut self, field: u32, on: bool) -> &mut Self {
        self.number(field, on.into())
    }

    /// Adds a text.
    pub(super) fn text(&mut self, field: u32, text: &str) -> &mut Self {
        self.delimited(field, text.as_bytes())
    }

    /// Adds a message.
    pub(super) fn message(&mut self, field: u32, message: &Self) -> &mut Self {
        self.delimited(field, &message.0)
    }

    /// The encoded message.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn delimited(&mut self, field: u32, bytes: &[u8]) -> &mut Self {
        self.key(field, DELIMITED);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    fn key(&mut self, field: u32, wire_type: u64) {
        self.varint(u64::from(field) << 3 | wire_type);
    }

    /// Seven bits a byte, the lowest first; the top bit says that more follow.
    fn varint(&mut self, mut value: u64) {
        loop {
            let [low, ..] = (value & 0x7f).to_le_bytes();
            value >>= 7;
            if value == 0 {
                self.0.push(low);
                return;
            }
            self.0.push(low | 0x80);
        }
    }
}

/// Content of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value<'a> {
    /// A number; a negative one as its two's complement.
    Number(u64),
    /// A text or message.
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    /// As an `int32`, 0 when it is none.
    pub(super) fn int32(self) -> i32 {
        match self {
            Self::Number(number) => i32::try_from(number.cast_signed()).unwrap_or(0),
            Self::Bytes(_) => 0,
        }
    }

    /// As a `bool`.
    pub(super) fn is_true(self) -> bool {
        !matches!(self, Self::Number(0) | Self::Bytes(_))
    }

    /// As a text, empty when it is none.
    pub(super) fn text(self) -> String {
        String::from_utf8_lossy(self.bytes()).into_owned()
    }

    /// As bytes, none when it is a number.
    pub(super) fn bytes(self) -> &'a [u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Number(_) => &[],
        }
    }
}

/// The fields of an encoded message, by number. `None` when the bytes are no message.
pub(super) fn fields(mut bytes: &[u8]) -> Option<Vec<(u32, Value<'_>)>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = take_varint(&mut bytes)?;
        let field = u32::try_from(key >> 3).ok()?;
        let value = match key & 7 {
            VARINT => Value::Number(take_varint(&mut bytes)?),
            DELIMITED => {
                let length = usize::try_from(take_varint(&mut bytes)?).ok()?;
                Value::Bytes(take(&mut bytes, length)?)
            }
            EIGHT_BYTES => Value::Bytes(take(&mut bytes, 8)?),
            FOUR_BYTES => Value::Bytes(take(&mut bytes, 4)?),
            _ => return None,
        };
        found.push((field, value));
    }
    Some(found)
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    // Ten bytes of seven bits hold 64.
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_the_documentation_encodes_it() {
        // The examples of protobuf.dev: field 1 is 150, field 2 is "testing", field 3 is the first message.
        let mut number = Message::default();
        number.number(1, 150);
        assert_eq!(number.bytes(), [0x08, 0x96, 0x01]);
        let mut text = Message::default();
        text.text(2, "testing");
        assert_eq!(text.bytes(), b"\x12\x07testing");
        let mut nested = Message::default();
        nested.message(3, &number);
        assert_eq!(nested.bytes(), [0x1a, 0x03, 0x08, 0x96, 0x01]);
    }

    #[test]
    fn comes_back() {
        let mut message = Message::default();
        message.number(1, u32::MAX).switch(63, true).text(10, "log");
        assert_eq!(
            fields(message.bytes()).unwrap(),
            [
                (1, Value::Number(u64::from(u32::MAX))),
                (63, Value::Number(1)),
                (10, Value::Bytes(b"log")),
            ]
        );
    }

    #[test]
    fn negative_numbers() {
        let minus_one = [0x10, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1];
        let found = fields(&minus_one).unwrap();
        assert_eq!(found, [(2, Value::Number(u64::MAX))]);
        assert_eq!(found[0].1.int32(), -1);
    }

    #[test]
    fn what_is_cut_off_or_endless_is_no_message() {
        assert_eq!(fields(&[0x0a, 5, b'a']), None);
        assert_eq!(fields(&[0x08]), None);
        assert_eq!(fields(&[0x08, 0x80]), None);
        assert_eq!(fields(&[0xff; 40]), None);
        assert_eq!(fields(&[0x0b]), None);
    }
}
