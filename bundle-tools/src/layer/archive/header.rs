//! One header block: its fields, and the entry they make with the extensions.

use super::pax::Records;
use super::{BLOCK, Entry, Kind};

/// The largest size a field may claim: more would overflow offsets.
const MAX_SIZE: u64 = i64::MAX.cast_unsigned() - 1024;

/// The fields of a header block, numbers decoded.
pub(super) struct Header {
    pub(super) flag: u8,
    pub(super) size: u64,
    path: Vec<u8>,
    link: Vec<u8>,
    mode: i64,
    uid: i64,
    gid: i64,
    mtime: i64,
    device: (i64, i64),
}

/// Decodes a header block after checking its checksum.
pub(super) fn parse(block: &[u8; BLOCK]) -> Result<Header, &'static str> {
    let header = tar::Header::from_byte_slice(block);
    let old = header.as_old();
    check_sum(block, number(&old.cksum)?)?;
    let device = match (header.as_ustar(), header.as_gnu()) {
        (Some(ustar), _) => (number(&ustar.dev_major)?, number(&ustar.dev_minor)?),
        (_, Some(gnu)) => (number(&gnu.dev_major)?, number(&gnu.dev_minor)?),
        _ => (0, 0),
    };
    let size = u64::try_from(number(&old.size)?).map_err(|_| "a negative size")?;
    if size > MAX_SIZE {
        return Err("an impossible size");
    }
    Ok(Header {
        flag: old.linkflag[0],
        size,
        path: header.path_bytes().into_owned(),
        link: header.link_name_bytes().unwrap_or_default().into_owned(),
        mode: number(&old.mode)?,
        uid: number(&old.uid)?,
        gid: number(&old.gid)?,
        mtime: number(&old.mtime)?,
        device,
    })
}

impl Header {
    /// The entry, extensions taking precedence over the block. Its size is left to the caller.
    pub(super) fn entry(
        &self,
        records: &Records,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, &'static str> {
        let path = long_name
            .map(until_nul)
            .or_else(|| records.sparse.name.clone())
            .or_else(|| records.path.clone())
            .unwrap_or_else(|| self.path.clone());
        let link = long_link
            .map(until_nul)
            .or_else(|| records.link.clone())
            .unwrap_or_else(|| self.link.clone());
        let stored = records.size.unwrap_or(self.size);
        Ok(Entry {
            kind: self.kind(&path, stored)?,
            path,
            link,
            mode: u32::try_from(self.mode & 0o7777).map_err(|_| "a bad mode")?,
            uid: id(records.uid.unwrap_or(self.uid))?,
            gid: id(records.gid.unwrap_or(self.gid))?,
            mtime: records.mtime.unwrap_or((self.mtime, 0)),
            size: 0,
            device: (device(self.device.0)?, device(self.device.1)?),
            xattrs: records.xattrs.clone(),
            segments: Vec::new(),
        })
    }

    fn kind(&self, path: &[u8], size: u64) -> Result<Kind, &'static str> {
        match self.flag {
            // Before ustar, a trailing slash was all that told a directory.
            0 | b'0' if path.ends_with(b"/") => {
                if size == 0 {
                    Ok(Kind::Directory)
                } else {
                    Err("a directory with content")
                }
            }
            0 | b'0' | b'7' | b'S' => Ok(Kind::File),
            b'1' => Ok(Kind::HardLink),
            b'2' => Ok(Kind::Symlink),
            b'3' => Ok(Kind::CharDevice),
            b'4' => Ok(Kind::BlockDevice),
            b'5' => Ok(Kind::Directory),
            b'6' => Ok(Kind::Fifo),
            _ => Err("an entry of unknown type"),
        }
    }
}

/// Decodes a numeric field: octal text, or base 256 when the first bit is set.
pub(super) fn number(field: &[u8]) -> Result<i64, &'static str> {
    if field.first().is_some_and(|byte| byte & 0x80 != 0) {
        return binary(field);
    }
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field
        .iter()
        .position(|byte| !blank(byte))
        .unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(blank).unwrap_or(digits.len());
    if !digits[end..].iter().all(blank) {
        return Err("a number with something behind it");
    }
    digits[..end]
        .iter()
        .try_fold(0i64, |value, &digit| match digit {
            b'0'..=b'7' => value
                .checked_mul(8)
                .and_then(|value| value.checked_add(i64::from(digit - b'0')))
                .ok_or("a number out of range"),
            _ => Err("a number that is not octal"),
        })
}

/// Two's complement, big endian, the very first bit serving as the marker.
fn binary(field: &[u8]) -> Result<i64, &'static str> {
    let negative = field[0] & 0x40 != 0;
    let first = if negative { field[0] } else { field[0] & 0x7f };
    let start = if negative { -1i64 } else { 0 };
    let shift = |value: i64, byte: u8| {
        let wide = (i128::from(value) << 8) | i128::from(byte);
        i64::try_from(wide).map_err(|_| "a number out of range")
    };
    field[1..]
        .iter()
        .try_fold(shift(start, first)?, |value, &byte| shift(value, byte))
}

/// Unsigned as POSIX says, or signed as some historic programs computed it.
fn check_sum(block: &[u8; BLOCK], expected: i64) -> Result<(), &'static str> {
    let (mut unsigned, mut signed) = (0i64, 0i64);
    for (position, &byte) in block.iter().enumerate() {
        let byte = if (148..156).contains(&position) {
            b' '
        } else {
            byte
        };
        unsigned += i64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    if expected == unsigned || expected == signed {
        Ok(())
    } else {
        Err("a wrong checksum")
    }
}

/// A user or group id; the highest value means "leave it" to `chown(2)` and is refused.
fn id(value: i64) -> Result<u32, &'static str> {
    match u32::try_from(value) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err("a user or group id out of range"),
    }
}

fn device(value: i64) -> Result<u32, &'static str> {
    u32::try_from(value).map_err(|_| "a device number out of range")
}

/// GNU long names end in a NUL byte; nothing may hide behind it.
fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|&byte| byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_all_spellings() {
        let cases: [(&[u8], Option<i64>); 13] = [
            (b"0000644\0", Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"644", Some(0o644)),
            (b"\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"77777777777\0", Some(0o77_777_777_777)),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (
                b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
                Some(i64::MAX),
            ),
            (b"0000648\0", None),
            (b"-1\0", None),
            (b"64\x004\0", None),
        ];
        for (field, expected) in cases {
            assert_eq!(number(field).ok(), expected, "{field:?}");
        }
    }
}
