//! docker's json-file format: one JSON object a line,
//! `{"log":"text\n","stream":"stdout","time":"…Z"}`.
//!
//! A line without its end is held back until the end arrives, or until it is
//! as long as docker's buffer: then it goes out in pieces, of which only the
//! last has the newline in its `log`.

use std::time::SystemTime;

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
        let line = match find_newline(window) {
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

/// Position of the first newline. Eight bytes at a time: output is logged at
/// the speed of this loop.
fn find_newline(data: &[u8]) -> Option<usize> {
    const LOW: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let (words, tail) = data.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let differs = u64::from_le_bytes(*word) ^ (LOW * b'\n' as u64);
        let zeros = differs.wrapping_sub(LOW) & !differs & HIGH;
        if zeros != 0 {
            return Some(index * 8 + zeros.trailing_zeros() as usize / 8);
        }
    }
    let position = tail.iter().position(|&byte| byte == b'\n')?;
    Some(words.len() * 8 + position)
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

/// Appends one record to `out`.
pub(crate) fn record(stream: Stream, time: SystemTime, text: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"log\":\"");
    escape(text, out);
    out.extend_from_slice(b"\",\"stream\":\"");
    out.extend_from_slice(stream.name().as_bytes());
    out.extend_from_slice(b"\",\"time\":\"");
    out.extend_from_slice(&timestamp::format(time));
    out.extend_from_slice(b"Z\"}\n");
}

/// Appends `text` as the inside of a JSON string. What is not UTF-8 becomes
/// U+FFFD, as in docker's logs.
pub(crate) fn escape(text: &[u8], out: &mut Vec<u8>) {
    for chunk in text.utf8_chunks() {
        escape_valid(chunk.valid().as_bytes(), out);
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
}

fn escape_valid(text: &[u8], out: &mut Vec<u8>) {
    let mut rest = text;
    while let Some(at) = rest
        .iter()
        .position(|&byte| byte < 0x20 || byte == b'"' || byte == b'\\')
    {
        out.extend_from_slice(&rest[..at]);
        let byte = rest[at];
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
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
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
    fn newlines_are_found() {
        for at in 0..40 {
            let mut data = vec![b'a'; 40];
            data[at] = b'\n';
            assert_eq!(find_newline(&data), Some(at));
        }
        assert_eq!(find_newline(b"\x0b\x8a\x09 no newline \xff"), None);
    }

    #[test]
    fn records_are_json() {
        let mut out = Vec::new();
        record(
            Stream::Stdout,
            std::time::UNIX_EPOCH,
            b"a\"b\\c\t\x01\x7f\xff\xc3\xa9\r\n",
            &mut out,
        );
        assert!(out.ends_with(b"\"time\":\"1970-01-01T00:00:00.000000000Z\"}\n"));
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(value["log"], "a\"b\\c\t\u{1}\u{7f}\u{fffd}é\r\n");
        assert_eq!(value["stream"], "stdout");
    }
}
