//! Calls of a shim's task service by hand: ttrpc's frames, and protobuf as far as a request needs it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// The message type of a request (ttrpc's PROTOCOL.md).
const REQUEST: u8 = 1;

/// A protobuf message under construction.
#[derive(Debug, Clone, Default)]
pub struct Message(Vec<u8>);

impl Message {
    /// Adds field `number`, a string, bytes, or another message.
    #[must_use]
    pub fn with(mut self, number: u8, content: impl AsRef<[u8]>) -> Self {
        let content = content.as_ref();
        // Wire type 2: a length and that many bytes.
        self.0.push(number << 3 | 2);
        self.varint(content.len());
        self.0.extend_from_slice(content);
        self
    }

    /// Sets field `number`, a switch.
    #[must_use]
    pub fn with_true(self, number: u8) -> Self {
        self.with_number(number, 1)
    }

    /// Sets field `number`, a number of at most seven bits.
    #[must_use]
    pub fn with_number(mut self, number: u8, value: u8) -> Self {
        // Wire type 0: a number.
        self.0.extend_from_slice(&[number << 3, value & 0x7f]);
        self
    }

    fn varint(&mut self, mut value: usize) {
        while value > 0x7f {
            self.0.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        self.0.push(value.to_le_bytes()[0]);
    }
}

impl AsRef<[u8]> for Message {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Calls a method of the task service at the socket `path`; a refusal is the error's text.
///
/// # Errors
/// What the shim says, or why it could not be asked.
pub fn call(path: &Path, method: &str, payload: &Message) -> Result<Vec<u8>, String> {
    call_service(path, "containerd.task.v2.Task", method, payload)
}

/// As above, of another service.
///
/// # Errors
/// The same.
pub fn call_service(
    path: &Path,
    service: &str,
    method: &str,
    payload: &Message,
) -> Result<Vec<u8>, String> {
    exchange(path, service, method, payload).map_err(|error| format!("{method}: {error}"))?
}

fn exchange(
    path: &Path,
    service: &str,
    method: &str,
    payload: &Message,
) -> std::io::Result<Result<Vec<u8>, String>> {
    let request = Message::default()
        .with(1, service)
        .with(2, method)
        .with(3, payload);
    let length = u32::try_from(request.0.len()).map_err(std::io::Error::other)?;
    let mut socket = UnixStream::connect(path)?;
    socket.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut frame = length.to_be_bytes().to_vec();
    // Stream 1, as a client's first.
    frame.extend_from_slice(&[0, 0, 0, 1, REQUEST, 0]);
    frame.extend_from_slice(request.as_ref());
    socket.write_all(&frame)?;
    let mut header = [0; 10];
    socket.read_exact(&mut header)?;
    let length = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
    let mut body = vec![0; length as usize];
    socket.read_exact(&mut body)?;
    Ok(match field(&body, 1) {
        Some(status) if !status.is_empty() => {
            let text = field(status, 2).unwrap_or_default();
            Err(String::from_utf8_lossy(text).into_owned())
        }
        _ => Ok(field(&body, 2).unwrap_or_default().to_vec()),
    })
}

/// The first field `wanted` of a message's fields that hold bytes.
#[must_use]
pub fn field(mut message: &[u8], wanted: u8) -> Option<&[u8]> {
    while let Some((&key, rest)) = message.split_first() {
        let (value, rest) = varint(rest)?;
        message = rest;
        if key & 7 == 2 {
            let (content, rest) = message.split_at_checked(value)?;
            if key >> 3 == wanted {
                return Some(content);
            }
            message = rest;
        }
    }
    None
}

fn varint(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut value = 0;
    for (index, byte) in bytes.iter().enumerate().take(9) {
        value |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[index + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_again() {
        let long = "x".repeat(300);
        let message = Message::default().with(1, "a").with(3, &long);
        assert_eq!(field(&message.0, 1), Some(&b"a"[..]));
        assert_eq!(field(&message.0, 3), Some(long.as_bytes()));
        assert_eq!(field(&message.0, 2), None);
    }
}
