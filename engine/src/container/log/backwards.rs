//! The lines of a log from its end: for the last few nobody has to read what may be a hundred megabytes before them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use memchr::memrchr;

/// Bytes read at once.
const BLOCK: u64 = 64 * 1024;

/// What has been read of a file, from the end on.
#[derive(Debug)]
pub(super) struct Lines<'file> {
    file: &'file File,
    /// Where in the file the buffer begins.
    start: u64,
    buffer: Vec<u8>,
    /// How much of the buffer has not been handed out.
    left: usize,
}

impl<'file> Lines<'file> {
    /// Begins behind the last line that is whole now.
    pub(super) fn new(file: &'file File) -> io::Result<Self> {
        let mut lines = Self {
            file,
            start: file.metadata()?.len(),
            buffer: Vec::new(),
            left: 0,
        };
        while lines.start > 0 && !lines.buffer.contains(&b'\n') {
            lines.read()?;
        }
        lines.left = memrchr(b'\n', &lines.buffer).map_or(0, |at| at + 1);
        Ok(lines)
    }

    /// Where in the file the next line ends; at first, the last whole one.
    pub(super) fn end(&self) -> u64 {
        self.start + self.left as u64
    }

    /// The line before, with its newline; `None` at the beginning of the file.
    pub(super) fn next(&mut self) -> io::Result<Option<&[u8]>> {
        let Some(mut text) = self.left.checked_sub(1) else {
            return Ok(None);
        };
        let begin = loop {
            if let Some(at) = memrchr(b'\n', &self.buffer[..text]) {
                break at + 1;
            }
            if self.start == 0 {
                break 0;
            }
            text += self.read()?;
        };
        let end = std::mem::replace(&mut self.left, begin);
        Ok(Some(&self.buffer[begin..end]))
    }

    /// Puts the block before into the buffer, and says how long it is.
    fn read(&mut self) -> io::Result<usize> {
        let length = self.start.min(BLOCK);
        let mut buffer = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        self.file.read_exact_at(&mut buffer, self.start - length)?;
        let added = buffer.len();
        buffer.extend_from_slice(&self.buffer[..self.left]);
        self.buffer = buffer;
        self.start -= length;
        self.left += added;
        Ok(added)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// The lines of `text`, from the end on, and where the whole ones end.
    fn backwards(text: &[u8]) -> (Vec<Vec<u8>>, u64) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text).unwrap();
        let mut lines = Lines::new(&file).unwrap();
        let end = lines.end();
        let mut all = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            all.push(line.to_vec());
        }
        (all, end)
    }

    #[test]
    fn lines_are_those_of_the_other_direction() {
        let block = usize::try_from(BLOCK).unwrap();
        for lengths in [
            vec![],
            vec![1],
            vec![1, 1, 1],
            vec![3, block, 5],
            vec![block, block],
            vec![block - 1, 2, block + 1, 1],
            vec![3 * block + 7],
            (1..700).collect(),
        ] {
            for rest in [0, 1, block, block + 1] {
                let mut text = Vec::new();
                let mut expected = Vec::new();
                for (length, letter) in lengths.iter().zip((b'a'..=b'z').cycle()) {
                    let mut line = vec![letter; length - 1];
                    line.push(b'\n');
                    text.extend_from_slice(&line);
                    expected.push(line);
                }
                let whole = text.len() as u64;
                text.extend(std::iter::repeat_n(b'.', rest));
                expected.reverse();
                assert!(
                    backwards(&text) == (expected, whole),
                    "{lengths:?} and {rest}"
                );
            }
        }
    }

    #[test]
    fn little_is_read_for_a_few_lines() {
        let file = tempfile::tempfile().unwrap();
        let size = 1 << 40;
        file.write_all_at(b"\nlast but one\nlast\n", size).unwrap();
        let mut lines = Lines::new(&file).unwrap();
        assert_eq!(lines.next().unwrap(), Some(&b"last\n"[..]));
        assert_eq!(lines.next().unwrap(), Some(&b"last but one\n"[..]));
        assert!(lines.start + BLOCK >= size);
    }
}
