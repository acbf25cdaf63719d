//! Reads tar archives as far as container layers need it.
//!
//! The `tar` crate lays out the header block; everything that decides where one
//! entry ends and the next begins is here, strict, because two readers that
//! disagree about that see two different archives in the same bytes: numbers,
//! PAX records (binary values, newlines in them), size overrides, GNU long
//! names, the four sparse formats. Extension records are bounded in size.
//!
//! Reads on: ustar, GNU, PAX, V7. Left out: multi-volume archives, star's own
//! prefix, base64 attributes of libarchive, ACLs in text form.
//!
//! Governing text: POSIX.1-2017 `pax`, "ustar Interchange Format" and "pax
//! Extended Header"; the GNU tar manual, "Tar Internals".

mod header;
pub(crate) mod pax;
mod sparse;

use std::io::{self, BufRead, BufReader, Read};

use pax::Records;
use sparse::Segment;

/// Header and padding unit of the format, in bytes.
pub(crate) const BLOCK: usize = 512;
const BLOCK_U64: u64 = 512;
/// The most bytes of one extension header: names, attributes. Go's reader has the same limit.
const MAX_EXTENSION: u64 = 1 << 20;
/// One read of the input; also the largest single write of file content.
const BUFFER: usize = 256 << 10;

/// An archive can not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The input failed, or its decompressor did.
    #[error("read the archive at byte {at}")]
    Io {
        /// Offset of the failure in the uncompressed archive.
        at: u64,
        /// The failure.
        source: io::Error,
    },
    /// The input ends within an entry.
    #[error("the archive is truncated: it ends within an entry, at byte {at}")]
    Truncated {
        /// Where the input ended.
        at: u64,
    },
    /// The input breaks the format, or is no tar archive.
    #[error("malformed archive: {what}, in the header at byte {at}")]
    Malformed {
        /// What is wrong.
        what: &'static str,
        /// Offset of the header block.
        at: u64,
    },
}

/// What an entry is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    CharDevice,
    BlockDevice,
    Fifo,
}

/// One entry, with all extension headers merged in. Names are as in the archive, unchecked.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    /// Permission, set-id and sticky bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds since 1970.
    pub(crate) mtime: (i64, u32),
    /// Size of the file once unpacked, holes included.
    pub(crate) size: u64,
    /// Major and minor number.
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the data goes; empty means: in one piece, from the start.
    segments: Vec<Segment>,
}

impl Entry {
    /// Whether the data is stored without its holes.
    pub(crate) fn is_sparse(&self) -> bool {
        !self.segments.is_empty()
    }
}

/// Reads an archive entry by entry.
pub(crate) struct Reader<R> {
    input: BufReader<R>,
    /// Bytes consumed so far.
    position: u64,
    /// Bytes of the current entry's data not yet consumed.
    data: u64,
    /// Bytes between the data and the next header.
    padding: u64,
    /// Offset of the current header, for messages.
    header_at: u64,
}

impl<R: Read> Reader<R> {
    pub(crate) fn new(input: R) -> Reader<R> {
        Reader {
            input: BufReader::with_capacity(BUFFER, input),
            position: 0,
            data: 0,
            padding: 0,
            header_at: 0,
        }
    }

    /// The next entry; `None` at the end of the archive.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, Error> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_rest()?;
            let Some(block) = self.header_block()? else {
                if extensions.any() {
                    return Err(self.malformed("extension headers without an entry"));
                }
                return Ok(None);
            };
            let header = header::parse(&block).map_err(|what| self.malformed(what))?;
            match header.flag {
                b'L' => self.extension(&header, &mut extensions.long_name)?,
                b'K' => self.extension(&header, &mut extensions.long_link)?,
                b'x' | b'X' => {
                    let mut bytes = None;
                    self.extension(&header, &mut bytes)?;
                    let records = Records::parse(&bytes.unwrap_or_default());
                    let records = records.map_err(|what| self.malformed(what))?;
                    if extensions.records.replace(records).is_some() {
                        return Err(self.malformed("two PAX headers for one entry"));
                    }
                }
                b'g' => self.global(&header)?,
                // A volume label says nothing about files.
                b'V' => self.start_data(header.size),
                _ => return self.entry(&block, header, extensions).map(Some),
            }
        }
    }

    /// Passes the current entry's data on: offset in the file, and bytes.
    ///
    /// `E` is the caller's error; the archive's own converts into it.
    pub(crate) fn copy<E: From<Error>>(
        &mut self,
        entry: &Entry,
        mut sink: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        if entry.segments.is_empty() {
            return self.copy_segment(0, self.data, &mut sink);
        }
        for segment in &entry.segments {
            self.copy_segment(segment.offset, segment.length, &mut sink)?;
        }
        Ok(())
    }

    /// Reads the current entry's data as it is stored; 0 at its end.
    pub(crate) fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        let at = self.position;
        let left = usize::try_from(self.data).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        if wanted == 0 {
            return Ok(0);
        }
        let available = self.fill()?;
        if available.is_empty() {
            return Err(Error::Truncated { at });
        }
        let length = available.len().min(wanted);
        buffer[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        self.data -= length as u64;
        Ok(length)
    }

    /// Reads the input to its end: what follows the archive is not looked at.
    ///
    /// Fails with `limit` passed; returns the number of bytes.
    pub(crate) fn drain(&mut self, limit: u64) -> Result<u64, Error> {
        let mut drained = 0;
        loop {
            let length = self.fill()?.len();
            if length == 0 {
                return Ok(drained);
            }
            self.consume(length);
            drained += length as u64;
            if drained > limit {
                return Err(self.malformed("more follows the archive than the limit allows"));
            }
        }
    }

    fn copy_segment<E: From<Error>>(
        &mut self,
        mut offset: u64,
        mut left: u64,
        sink: &mut impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while left > 0 {
            let at = self.position;
            let buffer = self.fill()?;
            if buffer.is_empty() {
                return Err(Error::Truncated { at }.into());
            }
            let length = buffer
                .len()
                .min(usize::try_from(left).unwrap_or(usize::MAX));
            sink(offset, &buffer[..length])?;
            self.consume(length);
            self.data = self.data.saturating_sub(length as u64);
            offset += length as u64;
            left -= length as u64;
        }
        Ok(())
    }

    /// Merges the header and its extensions into an entry, and takes its sparse map off the data.
    fn entry(
        &mut self,
        block: &[u8; BLOCK],
        header: header::Header,
        extensions: Extensions,
    ) -> Result<Entry, Error> {
        let records = extensions.records.unwrap_or_default();
        let mut entry = header
            .entry(&records, extensions.long_name, extensions.long_link)
            .map_err(|what| self.malformed(what))?;
        // Only a file has data, whatever the size field of others says: star
        // and others store a link's or a directory's size there.
        let stored = records.size.unwrap_or(header.size);
        self.start_data(if entry.kind == Kind::File { stored } else { 0 });
        if entry.kind != Kind::File {
            entry.size = 0;
            return Ok(entry);
        }
        let map = if header.flag == b'S' {
            Some(self.gnu_sparse_map(block)?)
        } else {
            self.pax_sparse_map(&records)?
        };
        entry.size = stored;
        if let Some(map) = map {
            let check = sparse::check(&map, self.data);
            check.map_err(|what| self.malformed(what))?;
            entry.size = map.size;
            entry.segments = map.segments;
        }
        Ok(entry)
    }

    /// The map of an old GNU sparse entry: four segments in the header, more in blocks after it.
    fn gnu_sparse_map(&mut self, block: &[u8; BLOCK]) -> Result<sparse::Map, Error> {
        let (mut map, mut more) = sparse::gnu(block).map_err(|what| self.malformed(what))?;
        while more {
            let mut next = [0; BLOCK];
            self.read_exact(&mut next)?;
            more = sparse::gnu_extension(&next, &mut map).map_err(|what| self.malformed(what))?;
        }
        Ok(map)
    }

    fn pax_sparse_map(&mut self, records: &Records) -> Result<Option<sparse::Map>, Error> {
        let sparse = &records.sparse;
        if sparse.major != Some(1) {
            return sparse::pax_0(sparse).map_err(|what| self.malformed(what));
        }
        // Version 1.0: the map is text at the start of the data, in whole blocks.
        let mut text = sparse::TextMap::new(sparse.size);
        while !text.complete() {
            if self.data < BLOCK_U64 {
                return Err(self.malformed("a sparse map longer than its entry"));
            }
            let mut block = [0; BLOCK];
            self.read_exact(&mut block)?;
            self.data -= BLOCK_U64;
            text.feed(&block).map_err(|what| self.malformed(what))?;
        }
        text.finish().map(Some).map_err(|what| self.malformed(what))
    }

    /// Reads the data of an extension header into a slot that must be free.
    fn extension(
        &mut self,
        header: &header::Header,
        slot: &mut Option<Vec<u8>>,
    ) -> Result<(), Error> {
        if header.size > MAX_EXTENSION {
            return Err(self.malformed("an extension header of more than 1 MiB"));
        }
        let length = usize::try_from(header.size).unwrap_or(usize::MAX);
        let mut bytes = vec![0; length];
        self.start_data(header.size);
        self.read_exact(&mut bytes)?;
        self.data = 0;
        if slot.replace(bytes).is_some() {
            return Err(self.malformed("two long names for one entry"));
        }
        Ok(())
    }

    /// Reads a global PAX header. What it may change must not change where entries are.
    fn global(&mut self, header: &header::Header) -> Result<(), Error> {
        let mut bytes = None;
        self.extension(header, &mut bytes)?;
        let records = Records::parse(&bytes.unwrap_or_default());
        let records = records.map_err(|what| self.malformed(what))?;
        if records.structural() {
            return Err(self.malformed("a global PAX header with names or sizes"));
        }
        Ok(())
    }

    /// Reads a header block; `None` at the end of the archive.
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>, Error> {
        self.header_at = self.position;
        // Archives without the end marker are common enough; Go, GNU and tar-rs read them.
        if self.fill()?.is_empty() {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        self.read_exact(&mut block)?;
        if block.iter().any(|&byte| byte != 0) {
            return Ok(Some(block));
        }
        if !self.fill()?.is_empty() {
            self.read_exact(&mut block)?;
            if block.iter().any(|&byte| byte != 0) {
                return Err(self.malformed("a lone zero block before the end"));
            }
        }
        Ok(None)
    }

    fn start_data(&mut self, size: u64) {
        self.data = size;
        self.padding = size.next_multiple_of(BLOCK_U64) - size;
    }

    /// Consumes what is left of the current entry.
    fn skip_rest(&mut self) -> Result<(), Error> {
        let mut left = self.data + self.padding;
        self.data = 0;
        self.padding = 0;
        while left > 0 {
            let length = self.fill()?.len();
            if length == 0 {
                return Err(Error::Truncated { at: self.position });
            }
            let length = length.min(usize::try_from(left).unwrap_or(usize::MAX));
            self.consume(length);
            left -= length as u64;
        }
        Ok(())
    }

    fn fill(&mut self) -> Result<&[u8], Error> {
        let at = self.position;
        self.input
            .fill_buf()
            .map_err(|source| Error::Io { at, source })
    }

    fn consume(&mut self, length: usize) {
        self.input.consume(length);
        self.position += length as u64;
    }

    fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), Error> {
        let at = self.position;
        self.input
            .read_exact(buffer)
            .map_err(|source| match source.kind() {
                io::ErrorKind::UnexpectedEof => Error::Truncated { at },
                _ => Error::Io { at, source },
            })?;
        self.position += buffer.len() as u64;
        Ok(())
    }

    fn malformed(&self, what: &'static str) -> Error {
        Error::Malformed {
            what,
            at: self.header_at,
        }
    }
}

/// What extension headers said about the entry to come.
#[derive(Default)]
struct Extensions {
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    records: Option<Records>,
}

impl Extensions {
    fn any(&self) -> bool {
        self.long_name.is_some() || self.long_link.is_some() || self.records.is_some()
    }
}
