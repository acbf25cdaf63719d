//! docker's json-file format: one JSON object a line,
//! `{"log":"text\n","stream":"stdout","time":"…Z"}`, with labels
//! `"attrs":{"name":"value"}` before the time.
//!
//! A line without its end is held back until the end arrives, or until it is
//! as long as docker's buffer: then it goes out in pieces, of which only the
//! last has the newline in its `log`.

use std::rc::Rc;
use std::time::SystemTime;

use memchr::memchr;

use super::{Stream, timestamp};

/// Longest text of one record, as docker splits.
pub(crate) const LONGEST: usize = 16 * 1024;

/// The unfinished line of one stream.
#[derive(Debug, Default)]
pub(crate) struct Pending(Vec<u8>);

impl Pending {
    /// Cuts the next record's text off `data`, hands it to `emit` and returns
    /// the rest of `data`; text without an end is kept for later.
    pub(crate) fn next<'data>(
        &mut self,
        data: &'data [u8],
        emit: impl FnOnce(&[u8]),
    ) -> &'data [u8] {
        let room = LONGEST.saturating_sub(self.0.len()).max(1);
        let window = &data[..data.len().min(room)];
        let line = match memchr(b'\n', window) {
            Some(index) => index + 1,
            None if window.len() < room => {
                self.0.extend_from_slice(window);
                return &data[window.len()..];
            }
            None => window.len(),
        };
        let (text, rest) = data.split_at(line);
        if self.0.is_empty() && text.ends_with(b"\n") {
            emit(text);
            return rest;
        }
        self.0.extend_from_slice(text);
        let cut = if text.ends_with(b"\n") {
            self.0.len()
        } else {
            whole_characters(&self.0)
        };
        emit(&self.0[..cut]);
        self.0.drain(..cut);
        rest
    }

    /// Hands what is held back to `emit`: the stream has ended.
    pub(crate) fn finish(&mut self, emit: impl FnOnce(&[u8])) {
        if !self.0.is_empty() {
            emit(&self.0);
            self.0.clear();
        }
    }
}

/// Every byte 1, and every byte's highest bit.
const LOW: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x8080_8080_8080_8080;

/// Marks the bytes of `word` that equal `byte`.
fn equal(word: u64, byte: u8) -> u64 {
    let differs = word ^ (LOW * u64::from(byte));
    differs.wrapping_sub(LOW) & !differs
}

/// Position of the first byte that does not stand for itself in a JSON string. Eight at a time: output is logged at the
/// speed of this loop. Only the lowest bit that is found has to be right.
fn find_special(data: &[u8]) -> Option<usize> {
    let (words, tail) = data.as_chunks::<8>();
    for (index, bytes) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*bytes);
        let control = word.wrapping_sub(LOW * 0x20) & !word;
        let found = (control | word | equal(word, b'"') | equal(word, b'\\')) & HIGH;
        if found != 0 {
            return Some(index * 8 + found.trailing_zeros() as usize / 8);
        }
    }
    let special = |&byte: &u8| !(0x20..0x80).contains(&byte) || byte == b'"' || byte == b'\\';
    Some(words.len() * 8 + tail.iter().position(special)?)
}

/// Length of `text` without a UTF-8 character that is cut off at its end.
fn whole_characters(text: &[u8]) -> usize {
    for back in 1..=3.min(text.len()) {
        let at = text.len() - back;
        let expected = match text[at] {
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            0x80..=0xbf => continue,
            _ => break,
        };
        // A record must not become empty, or the line would never move on.
        return if expected > back && at > 0 {
            at
        } else {
            text.len()
        };
    }
    text.len()
}

/// What every record says of the container, of `NAME=VALUE` each; nothing without labels.
pub(crate) fn attributes(labels: &[String]) -> Rc<[u8]> {
    let mut out = Vec::new();
    for label in labels {
        let (name, value) = label.split_once('=').unwrap_or((label, ""));
        out.extend_from_slice(if out.is_empty() {
            b"\"attrs\":{\""
        } else {
            b",\""
        });
        escape(name.as_bytes(), &mut out);
        out.extend_from_slice(b"\":\"");
        escape(value.as_bytes(), &mut out);
        out.push(b'"');
    }
    if !out.is_empty() {
        out.extend_from_slice(b"},");
    }
    out.into()
}

/// What follows the text in each record of one chunk of output.
#[derive(Debug)]
pub(crate) struct Trailer {
    bytes: [u8; TRAILER],
    /// Where the attributes go.
    middle: usize,
    length: usize,
    attributes: Rc<[u8]>,
}

/// Bytes after the text at most, without the attributes.
const TRAILER: usize = 13 + 6 + 10 + timestamp::LENGTH + 4;

impl Trailer {
    /// The trailer for output that arrived on `stream` at `time`.
    pub(crate) fn new(stream: Stream, attributes: &Rc<[u8]>, time: SystemTime) -> Self {
        let mut trailer = Self {
            bytes: [0; TRAILER],
            middle: 0,
            length: 0,
            attributes: Rc::clone(attributes),
        };
        trailer.push(b"\",\"stream\":\"");
        trailer.push(stream.name().as_bytes());
        trailer.push(b"\",");
        trailer.middle = trailer.length;
        trailer.push(b"\"time\":\"");
        trailer.push(&timestamp::format(time));
        trailer.push(b"Z\"}\n");
        trailer
    }

    fn push(&mut self, part: &[u8]) {
        self.bytes[self.length..self.length + part.len()].copy_from_slice(part);
        self.length += part.len();
    }

    /// Appends one record to `out`.
    pub(crate) fn record(&self, text: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"log\":\"");
        escape(text, out);
        if self.attributes.is_empty() {
            return out.extend_from_slice(&self.bytes[..self.length]);
        }
        out.extend_from_slice(&self.bytes[..self.middle]);
        out.extend_from_slice(&self.attributes);
        out.extend_from_slice(&self.bytes[self.middle..self.length]);
    }
}

/// Appends `text` as the inside of a JSON string. What is not UTF-8 becomes
/// U+FFFD, as in docker's logs.
pub(crate) fn escape(text: &[u8], out: &mut Vec<u8>) {
    let mut rest = text;
    while let Some(at) = find_special(rest) {
        out.extend_from_slice(&rest[..at]);
        rest = &rest[at..];
        let byte = rest[0];
        if byte >= 0x80 {
            let end = rest.iter().position(u8::is_ascii).unwrap_or(rest.len());
            repair(&rest[..end], out);
            rest = &rest[end..];
        } else {
            escape_byte(byte, out);
            rest = &rest[1..];
        }
    }
    out.extend_from_slice(rest);
}

fn repair(text: &[u8], out: &mut Vec<u8>) {
    for chunk in text.utf8_chunks() {
        out.extend_from_slice(chunk.valid().as_bytes());
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
}

fn escape_byte(byte: u8, out: &mut Vec<u8>) {
    match byte {
        b'"' => out.extend_from_slice(b"\\\""),
        b'\\' => out.extend_from_slice(b"\\\\"),
        b'\n' => out.extend_from_slice(b"\\n"),
        b'\r' => out.extend_from_slice(b"\\r"),
        b'\t' => out.extend_from_slice(b"\\t"),
        _ => {
            let hex = b"0123456789abcdef";
            out.extend_from_slice(b"\\u00");
            out.push(hex[usize::from(byte >> 4)]);
            out.push(hex[usize::from(byte & 15)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds chunks and collects the texts of the records.
    fn texts(chunks: &[&[u8]], end: bool) -> Vec<Vec<u8>> {
        let mut pending = Pending::default();
        let mut texts = Vec::new();
        for chunk in chunks {
            let mut data = *chunk;
            while !data.is_empty() {
                data = pending.next(data, |text| texts.push(text.to_vec()));
            }
        }
        if end {
            pending.finish(|text| texts.push(text.to_vec()));
        }
        texts
    }

    #[test]
    fn lines_are_put_together() {
        assert_eq!(
            texts(&[b"a\nb", b"c", b"\nd"], false),
            [b"a\n".to_vec(), b"bc\n".to_vec()]
        );
        assert_eq!(texts(&[b"d"], true), [b"d".to_vec()]);
        assert_eq!(texts(&[b"\n\n"], true), [b"\n".to_vec(), b"\n".to_vec()]);
    }

    #[test]
    fn long_lines_are_split() {
        let mut line = vec![b'x'; 40_000];
        line.push(b'\n');
        let lengths: Vec<usize> = texts(&[&line], true).iter().map(Vec::len).collect();
        assert_eq!(lengths, [LONGEST, LONGEST, 40_001 - 2 * LONGEST]);
        // The same in small chunks.
        let chunks: Vec<&[u8]> = line.chunks(777).collect();
        let lengths: Vec<usize> = texts(&chunks, true).iter().map(Vec::len).collect();
        assert_eq!(lengths, [LONGEST, LONGEST, 40_001 - 2 * LONGEST]);
    }

    #[test]
    fn characters_are_not_split() {
        let mut line = vec![b'x'; LONGEST - 1];
        line.extend_from_slice("ä\n".as_bytes());
        let texts = texts(&[&line], true);
        assert_eq!(texts[0].len(), LONGEST - 1);
        assert_eq!(texts[1], "ä\n".as_bytes());
        assert_eq!(whole_characters(b"ab\xe2\x82"), 2);
        assert_eq!(whole_characters(b"ab\xe2\x82\xac"), 5);
        assert_eq!(whole_characters(b"\xe2\x82"), 2);
        assert_eq!(whole_characters(b"\x80\x80\x80\x80"), 4);
        assert_eq!(whole_characters(b""), 0);
    }

    #[test]
    fn every_byte_is_escaped_as_json_wants() {
        for byte in 0..=255_u8 {
            for at in [0, 3, 7, 8, 12] {
                let mut text = vec![b'x'; 13];
                text[at] = byte;
                let mut out = vec![b'"'];
                escape(&text, &mut out);
                out.push(b'"');
                let back: String = serde_json::from_slice(&out).unwrap();
                assert_eq!(back, String::from_utf8_lossy(&text), "{byte} at {at}");
            }
        }
    }

    #[test]
    fn records_are_json() {
        let mut out = Vec::new();
        Trailer::new(Stream::Stdout, &attributes(&[]), std::time::UNIX_EPOCH)
            .record(b"a\"b\\c\t\x01\x7f\xff\xc3\xa9\r\n", &mut out);
        assert!(out.ends_with(b"\"time\":\"1970-01-01T00:00:00.000000000Z\"}\n"));
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(value["log"], "a\"b\\c\t\u{1}\u{7f}\u{fffd}é\r\n");
        assert_eq!(value["stream"], "stdout");
    }

    #[test]
    fn labels_are_in_every_record() {
        let labels = ["a=b=\"c\"", "none"].map(str::to_owned);
        let mut out = Vec::new();
        Trailer::new(Stream::Stderr, &attributes(&labels), std::time::UNIX_EPOCH)
            .record(b"x\n", &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "{\"log\":\"x\\n\",\"stream\":\"stderr\",\"attrs\":{\"a\":\"b=\\\"c\\\"\",\"none\":\"\"},\
             \"time\":\"1970-01-01T00:00:00.000000000Z\"}\n"
        );
    }
}
