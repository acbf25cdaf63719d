//! The line format of Kubernetes' container runtime interface:
//! `TIME STREAM P|F TEXT`. `P` marks a line that goes on in the next record.

use std::io::BufRead;
use std::time::SystemTime;

use super::{Stream, timestamp};

/// Bytes before the text at most: stamp, zone, stream and tag.
const HEADER: usize = timestamp::LENGTH + 6 + 8 + 2;

/// The beginning of each record of one chunk of output.
#[derive(Debug)]
pub(crate) struct Header {
    bytes: [u8; HEADER],
    length: usize,
}

impl Header {
    /// A header for output that arrived on `stream` at `time`.
    pub(crate) fn new(stream: Stream, time: SystemTime) -> Self {
        let mut bytes = [0; HEADER];
        let mut length = 0;
        for part in [
            &timestamp::format(time)[..],
            b"+00:00 ",
            stream.name().as_bytes(),
            b" F ",
        ] {
            bytes[length..length + part.len()].copy_from_slice(part);
            length += part.len();
        }
        Self { bytes, length }
    }

    /// Appends one record to `out`, made of the first line of `data` or of all
    /// of it, and returns the rest of `data`.
    pub(crate) fn record<'data>(&self, mut data: &'data [u8], out: &mut Vec<u8>) -> &'data [u8] {
        out.extend_from_slice(&self.bytes[..self.length]);
        let tag = out.len() - 2;
        // Reading from and writing to memory cannot fail.
        let _ = data.read_until(b'\n', out);
        if out.last() != Some(&b'\n') {
            out[tag] = b'P';
            out.push(b'\n');
        }
        data
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    fn all(stream: Stream, mut data: &[u8]) -> String {
        let header = Header::new(stream, UNIX_EPOCH);
        let mut out = Vec::new();
        while !data.is_empty() {
            data = header.record(data, &mut out);
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn full_and_partial_lines() {
        assert_eq!(
            all(Stream::Stdout, b"one\n\ntwo"),
            "1970-01-01T00:00:00.000000000+00:00 stdout F one\n\
             1970-01-01T00:00:00.000000000+00:00 stdout F \n\
             1970-01-01T00:00:00.000000000+00:00 stdout P two\n"
        );
        assert_eq!(
            all(Stream::Stderr, b"e\n"),
            "1970-01-01T00:00:00.000000000+00:00 stderr F e\n"
        );
    }
}
