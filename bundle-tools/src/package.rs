//! Archives that hold images rather than files of a root file system: `docker save`, OCI archives.
//!
//! Reading goes member by member, through the same strict reader as layers; nothing is ever
//! unpacked under the names in the archive. What members mean is the caller's business.

use std::io::{self, Read, Write};

use crate::layer::ArchiveError;
use crate::layer::archive::{BLOCK, Kind, Reader};
use crate::layer::diff::blank;

/// One member of an archive.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Member {
    /// Its name, as it is in the archive.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: MemberKind,
    /// Bytes of content.
    pub size: u64,
}

/// What a member is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum MemberKind {
    /// A file, whose content can be read now.
    File,
    /// A directory.
    Directory,
    /// A symbolic link to this path, relative to its own directory.
    Symlink(Vec<u8>),
    /// Another name of the member of this path.
    HardLink(Vec<u8>),
    /// A device, a FIFO, a sparse file: nothing that such an archive needs.
    Other,
}

/// Reads the members of an uncompressed archive in their order.
///
/// Between two calls of [`Members::next`], [`Read`] gives the content of the file it returned.
pub struct Members<R>(Reader<R>);

impl<R: Read> Members<R> {
    /// Starts reading.
    pub fn new(input: R) -> Members<R> {
        Members(Reader::new(input))
    }

    /// The next member; `None` at the end. What is left of the one before is skipped.
    ///
    /// # Errors
    /// A malformed or truncated archive.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator could not be read from between two items"
    )]
    pub fn next(&mut self) -> Result<Option<Member>, ArchiveError> {
        let Some(entry) = self.0.next()? else {
            return Ok(None);
        };
        let kind = match entry.kind {
            Kind::File if entry.is_sparse() => MemberKind::Other,
            Kind::File => MemberKind::File,
            Kind::Directory => MemberKind::Directory,
            Kind::Symlink => MemberKind::Symlink(entry.link),
            Kind::HardLink => MemberKind::HardLink(entry.link),
            Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => MemberKind::Other,
        };
        Ok(Some(Member {
            path: entry.path,
            kind,
            size: entry.size,
        }))
    }

    /// Reads the input to its end, so that whoever writes it is not cut off.
    ///
    /// # Errors
    /// A failing read.
    pub fn drain(&mut self) -> Result<(), ArchiveError> {
        self.0.drain(u64::MAX).map(drop)
    }
}

impl<R: Read> Read for Members<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read_data(buffer).map_err(io::Error::other)
    }
}

impl<R> std::fmt::Debug for Members<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Members")
    }
}

/// Writes an archive member by member. The same members give the same bytes.
#[derive(Debug)]
pub struct Packer<W> {
    out: W,
}

impl<W: Write> Packer<W> {
    /// Starts an archive.
    pub fn new(out: W) -> Packer<W> {
        Packer { out }
    }

    /// Writes a directory; its name has at most 99 bytes.
    ///
    /// # Errors
    /// When the archive can't be written.
    pub fn directory(&mut self, path: &str) -> io::Result<()> {
        self.header(tar::EntryType::Directory, &format!("{path}/"), 0o755, 0)
    }

    /// Writes a file of exactly `size` bytes; its name has at most 100 bytes.
    ///
    /// # Errors
    /// When the content has another size or can't be read, or the archive can't be written.
    pub fn file(&mut self, path: &str, size: u64, content: impl Read) -> io::Result<()> {
        self.header(tar::EntryType::Regular, path, 0o644, size)?;
        let copied = io::copy(&mut content.take(size), &mut self.out)?;
        if copied < size {
            let message = format!("{path} has {copied} bytes and not {size}");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
        }
        let block = BLOCK as u64;
        let padding = usize::try_from(size.next_multiple_of(block) - size).unwrap_or(0);
        self.out.write_all(&[0; BLOCK][..padding])
    }

    /// Ends the archive and gives the output back.
    ///
    /// # Errors
    /// When the archive can't be written.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn header(&mut self, kind: tar::EntryType, path: &str, mode: u32, size: u64) -> io::Result<()> {
        let mut header = blank(kind);
        header.set_path(path)?;
        header.set_mode(mode);
        header.set_size(size);
        header.set_cksum();
        self.out.write_all(header.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_read_back() {
        let mut packer = Packer::new(Vec::new());
        packer.directory("blobs").unwrap();
        packer.file("blobs/one", 3, &b"one"[..]).unwrap();
        packer.file("two", 600, &[7; 600][..]).unwrap();
        assert!(packer.file("short", 4, &b"abc"[..]).is_err());
        let mut packer = Packer::new(Vec::new());
        packer.directory("blobs").unwrap();
        packer.file("blobs/one", 3, &b"one"[..]).unwrap();
        packer.file("two", 600, &[7; 600][..]).unwrap();
        let archive = packer.finish().unwrap();
        assert_eq!(archive.len() % BLOCK, 0);

        let mut members = Members::new(&archive[..]);
        let directory = members.next().unwrap().unwrap();
        assert_eq!(directory.kind, MemberKind::Directory);
        let one = members.next().unwrap().unwrap();
        assert_eq!(
            (&one.path[..], one.kind, one.size),
            (&b"blobs/one"[..], MemberKind::File, 3)
        );
        let mut text = String::new();
        members.read_to_string(&mut text).unwrap();
        assert_eq!(text, "one");
        // The content of the second is not read, and skipped.
        assert_eq!(members.next().unwrap().unwrap().size, 600);
        assert_eq!(members.next().unwrap(), None);
        members.drain().unwrap();
    }

    #[test]
    fn a_cut_archive_is_an_error() {
        let mut packer = Packer::new(Vec::new());
        packer.file("two", 600, &[7; 600][..]).unwrap();
        let archive = packer.finish().unwrap();
        let mut members = Members::new(&archive[..700]);
        members.next().unwrap();
        assert!(members.read_to_end(&mut Vec::new()).is_err());
    }
}
