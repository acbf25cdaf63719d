//! The line format of Kubernetes' container runtime interface:
//! `TIME STREAM P|F TEXT`. `P` marks a line that goes on in the next record.

use std::time::SystemTime;

use memchr::memchr;

use super::{Stream, timestamp};

/// What is before the text, for some moment.
const TEMPLATE: &[u8; 45] = b"0000-00-00T00:00:00.000000000+00:00 stdout F ";

/// Where the stream and the tag are.
const STREAM: std::ops::Range<usize> = 36..42;
const TAG: usize = 43;

/// The beginning of each record of one chunk of output.
#[derive(Debug)]
pub(crate) struct Header([u8; TEMPLATE.len()]);

impl Header {
    /// A header for output that arrived on `stream` at `time`.
    pub(crate) fn new(stream: Stream, time: SystemTime) -> Self {
        let mut bytes = *TEMPLATE;
        bytes[..timestamp::LENGTH].copy_from_slice(&timestamp::format(time));
        bytes[STREAM].copy_from_slice(stream.name().as_bytes());
        Self(bytes)
    }

    /// Appends one record to `out`, made of the first line of `data` or of all
    /// of it, and returns the rest of `data`.
    pub(crate) fn record<'data>(&self, data: &'data [u8], out: &mut Vec<u8>) -> &'data [u8] {
        let length = memchr(b'\n', data).map_or(data.len(), |index| index + 1);
        let (line, rest) = data.split_at(length);
        let tag = out.len() + TAG;
        out.extend_from_slice(&self.0);
        out.extend_from_slice(line);
        if !line.ends_with(b"\n") {
            out[tag] = b'P';
            out.push(b'\n');
        }
        rest
    }
}

/// The stream whose line goes on after a record; `None` when the record ends it.
pub(crate) fn goes_on(record: &[u8]) -> Option<Stream> {
    if record.get(TAG) != Some(&b'P') {
        return None;
    }
    let streams = [Stream::Stdout, Stream::Stderr];
    streams
        .into_iter()
        .find(|stream| record.get(STREAM) == Some(stream.name().as_bytes()))
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
