//! Sparse files: where the stored data goes, in GNU's old and its three PAX formats.

use super::header::number;
use super::{BLOCK, pax};

/// The most segments of one file; a 1 TiB file of 1 MiB islands has as many.
const MAX_SEGMENTS: usize = 1 << 20;

/// A piece of stored data and its place in the file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Segment {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// Where all stored data goes.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Map {
    /// Size of the file, holes included.
    pub(super) size: u64,
    pub(super) segments: Vec<Segment>,
}

impl Map {
    fn push(&mut self, offset: u64, length: u64) -> Result<(), &'static str> {
        if self.segments.len() >= MAX_SEGMENTS {
            return Err("too many pieces in a sparse file");
        }
        self.segments.push(Segment { offset, length });
        Ok(())
    }
}

/// Checks that the pieces are in order, within the file, and all of the stored data.
pub(super) fn check(map: &Map, stored: u64) -> Result<(), &'static str> {
    const BAD: &str = "an inconsistent sparse map";
    let (mut end, mut sum) = (0u64, 0u64);
    for segment in &map.segments {
        if segment.offset < end {
            return Err(BAD);
        }
        end = segment.offset.checked_add(segment.length).ok_or(BAD)?;
        sum = sum.checked_add(segment.length).ok_or(BAD)?;
    }
    let possible = i64::try_from(map.size).is_ok();
    if end > map.size || sum != stored || !possible {
        return Err(BAD);
    }
    Ok(())
}

/// The part of an old GNU map that is in the header, and whether more follows.
pub(super) fn gnu(block: &[u8; BLOCK]) -> Result<(Map, bool), &'static str> {
    let header = tar::Header::from_byte_slice(block);
    let gnu = header
        .as_gnu()
        .ok_or("a sparse entry without a GNU header")?;
    let size = number(&gnu.realsize)?;
    let mut map = Map {
        size: u64::try_from(size).map_err(|_| "a negative size")?,
        segments: Vec::new(),
    };
    add_gnu(&gnu.sparse, &mut map)?;
    Ok((map, gnu.isextended[0] != 0))
}

/// Adds an extension block to an old GNU map; returns whether more follows.
pub(super) fn gnu_extension(block: &[u8; BLOCK], map: &mut Map) -> Result<bool, &'static str> {
    let mut extension = tar::GnuExtSparseHeader::new();
    extension.as_mut_bytes().copy_from_slice(block);
    add_gnu(&extension.sparse, map)?;
    Ok(extension.isextended[0] != 0)
}

fn add_gnu(pieces: &[tar::GnuSparseHeader], map: &mut Map) -> Result<(), &'static str> {
    for piece in pieces {
        // An unused slot ends the list.
        if piece.offset[0] == 0 || piece.numbytes[0] == 0 {
            break;
        }
        let offset = u64::try_from(number(&piece.offset)?).map_err(|_| "a negative offset")?;
        let length = u64::try_from(number(&piece.numbytes)?).map_err(|_| "a negative size")?;
        map.push(offset, length)?;
    }
    Ok(())
}

/// The map of formats 0.0 and 0.1, which is in the records; `None` when there is none.
pub(super) fn pax_0(records: &pax::Sparse) -> Result<Option<Map>, &'static str> {
    if records.numbers.is_empty() && records.size.is_none() {
        return Ok(None);
    }
    let size = records.size.ok_or("a sparse file without its size")?;
    map_of(size, &records.numbers).map(Some)
}

fn map_of(size: u64, numbers: &[u64]) -> Result<Map, &'static str> {
    let mut map = Map {
        size,
        segments: Vec::new(),
    };
    for pair in numbers.chunks(2) {
        let [offset, length] = *pair else {
            return Err("a sparse offset without its size");
        };
        map.push(offset, length)?;
    }
    Ok(map)
}

/// The map of format 1.0: decimal lines, their number first, padded to whole blocks.
pub(super) struct TextMap {
    size: Option<u64>,
    text: Vec<u8>,
    lines: usize,
    expected: Option<usize>,
}

impl TextMap {
    pub(super) fn new(size: Option<u64>) -> TextMap {
        TextMap {
            size,
            text: Vec::new(),
            lines: 0,
            expected: None,
        }
    }

    /// Whether all lines are there.
    pub(super) fn complete(&self) -> bool {
        self.expected.is_some_and(|expected| self.lines >= expected)
    }

    /// Adds a block of text.
    pub(super) fn feed(&mut self, block: &[u8; BLOCK]) -> Result<(), &'static str> {
        self.text.extend_from_slice(block);
        self.lines += block.iter().filter(|&&byte| byte == b'\n').count();
        if self.expected.is_none() {
            let pieces = self.numbers().next().ok_or("a malformed sparse map")??;
            let pieces = usize::try_from(pieces)
                .ok()
                .filter(|&pieces| pieces <= MAX_SEGMENTS);
            self.expected = Some(1 + 2 * pieces.ok_or("too many pieces in a sparse file")?);
        }
        // A number has twenty digits at most, and a line end.
        let longest = self.expected.unwrap_or(1).saturating_mul(21) + BLOCK;
        if self.text.len() > longest {
            return Err("a malformed sparse map");
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<Map, &'static str> {
        let size = self.size.ok_or("a sparse file without its size")?;
        let count = self.expected.unwrap_or(1) - 1;
        let numbers: Vec<u64> = self
            .numbers()
            .skip(1)
            .take(count)
            .collect::<Result<_, _>>()?;
        map_of(size, &numbers)
    }

    fn numbers(&self) -> impl Iterator<Item = Result<u64, &'static str>> {
        let end = self
            .text
            .iter()
            .rposition(|&byte| byte == b'\n')
            .unwrap_or(0);
        self.text[..end].split(|&byte| byte == b'\n').map(|line| {
            std::str::from_utf8(line)
                .ok()
                .filter(|line| line.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|line| line.parse().ok())
                .ok_or("a malformed sparse map")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_that_do_not_add_up_are_refused() {
        let map = |size, pieces: &[(u64, u64)]| Map {
            size,
            segments: pieces
                .iter()
                .map(|&(offset, length)| Segment { offset, length })
                .collect(),
        };
        assert!(check(&map(10, &[(0, 4), (8, 2)]), 6).is_ok());
        assert!(check(&map(10, &[]), 0).is_ok());
        assert!(check(&map(10, &[(0, 4), (10, 0)]), 4).is_ok());
        for (size, pieces, stored) in [
            (10, &[(0, 4), (3, 2)][..], 6),
            (10, &[(0, 4), (8, 3)], 7),
            (10, &[(0, 4)], 5),
            (u64::MAX, &[(u64::MAX - 1, 2)], 2),
            (u64::MAX, &[(0, 1)], 1),
        ] {
            assert!(check(&map(size, pieces), stored).is_err(), "{pieces:?}");
        }
    }

    #[test]
    fn text_maps_may_span_blocks() {
        let mut text = String::from("100\n");
        for piece in 0..100u64 {
            text += &format!("{}\n512\n", piece * 4096);
        }
        let mut bytes = text.into_bytes();
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        let mut map = TextMap::new(Some(1 << 20));
        for block in bytes.chunks(BLOCK) {
            assert!(!map.complete());
            map.feed(block.try_into().unwrap()).unwrap();
        }
        assert!(map.complete());
        let map = map.finish().unwrap();
        assert_eq!(map.segments.len(), 100);
        assert_eq!(map.segments[99].offset, 99 * 4096);
    }
}
