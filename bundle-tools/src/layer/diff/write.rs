//! Writes nodes as entries of a ustar archive, with PAX records for what ustar can not hold.

use std::collections::HashMap;
use std::io::{self, Read, Write};

use rustix::fs::{FileType, major, minor};

use super::read::Node;
use super::{Error, Options, Summary, printable};
use crate::layer::archive::{BLOCK, pax};
use crate::layer::{WHITEOUT_OPAQUE, WHITEOUT_PREFIX};

/// The largest number an octal field of eight bytes holds.
const MAX_ID: u32 = 0o7_777_777;
/// The largest number an octal field of twelve bytes holds.
const MAX_SIZE: u64 = 0o77_777_777_777;
/// One read of a file's content.
const BUFFER: usize = 128 << 10;

/// Writes an archive entry by entry.
pub(super) struct Writer<'o, W> {
    out: W,
    options: &'o Options,
    /// Exclusions as bytes.
    exclude: Vec<Vec<u8>>,
    /// Files with several names: device and inode, and the first name written.
    linked: HashMap<(u64, u64), Vec<u8>>,
    summary: Summary,
    buffer: Vec<u8>,
}

impl<'o, W: Write> Writer<'o, W> {
    pub(super) fn new(out: W, options: &'o Options) -> Writer<'o, W> {
        use std::os::unix::ffi::OsStrExt;
        let exclude = options.exclude.iter();
        let exclude = exclude.map(|path| {
            let bytes = path.as_os_str().as_bytes();
            let start = bytes
                .iter()
                .position(|&byte| byte != b'/')
                .unwrap_or(bytes.len());
            bytes[start..].to_vec()
        });
        Writer {
            out,
            options,
            exclude: exclude.collect(),
            linked: HashMap::new(),
            summary: Summary::default(),
            buffer: vec![0; BUFFER],
        }
    }

    /// Whether the caller wants a path left out.
    pub(super) fn excludes(&self, path: &[u8]) -> bool {
        self.exclude.iter().any(|excluded| excluded == path)
    }

    /// Whether the archive is a copy and no layer.
    pub(super) fn is_plain(&self) -> bool {
        self.options.plain
    }

    /// Writes a node, without what is in it.
    pub(super) fn entry(&mut self, node: &Node) -> Result<(), Error> {
        let name = node
            .path
            .rsplit(|&byte| byte == b'/')
            .next()
            .unwrap_or_default();
        if name.starts_with(WHITEOUT_PREFIX.as_bytes()) && !self.options.plain {
            return Err(Error::Whiteout(printable(&node.path)));
        }
        let kind = node.kind();
        if kind == FileType::Socket {
            self.summary.skipped_sockets += 1;
            return Ok(());
        }
        if kind != FileType::Directory && node.stat.st_nlink > 1 {
            let key = (node.stat.st_dev, node.stat.st_ino);
            if let Some(first) = self.linked.get(&key) {
                let first = first.clone();
                return self.head(node, tar::EntryType::Link, &first, 0);
            }
            self.linked.insert(key, node.path.clone());
        }
        match kind {
            FileType::RegularFile => self.file(node),
            FileType::Directory => self.head(node, tar::EntryType::Directory, b"", 0),
            FileType::Symlink => {
                let target = node.target()?;
                self.head(node, tar::EntryType::Symlink, &target, 0)
            }
            FileType::CharacterDevice => self.head(node, tar::EntryType::Char, b"", 0),
            FileType::BlockDevice => self.head(node, tar::EntryType::Block, b"", 0),
            _ => self.head(node, tar::EntryType::Fifo, b"", 0),
        }
    }

    /// Writes that `name` in `directory` is no longer there.
    pub(super) fn whiteout(&mut self, directory: &Node, name: &[u8]) -> Result<(), Error> {
        let name = [WHITEOUT_PREFIX.as_bytes(), name].concat();
        self.marker(&directory.join(&name))
    }

    /// Writes that nothing of the lower layers is left in a directory.
    pub(super) fn opaque(&mut self, directory: &Node) -> Result<(), Error> {
        self.marker(&directory.join(WHITEOUT_OPAQUE.as_bytes()))
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> Result<Summary, Error> {
        self.write(&[0; 2 * BLOCK])?;
        self.out.flush().map_err(Error::Write)?;
        Ok(self.summary)
    }

    fn marker(&mut self, path: &[u8]) -> Result<(), Error> {
        self.summary.entries += 1;
        let mut records = pax::Builder::default();
        let mut header = blank(tar::EntryType::Regular);
        set_path(&mut header, &mut records, path);
        self.header(header, records)
    }

    fn file(&mut self, node: &Node) -> Result<(), Error> {
        let size = u64::try_from(node.stat.st_size).unwrap_or(0);
        let content = node.content()?;
        self.head(node, tar::EntryType::Regular, b"", size)?;
        let mut content = content.take(size);
        let mut left = size;
        let mut buffer = std::mem::take(&mut self.buffer);
        while left > 0 {
            let length = match content.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other.map_err(Error::read("read", &node.path))?,
            };
            if length == 0 && self.options.plain {
                self.zeros(left)?;
                break;
            }
            if length == 0 {
                let error = io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter");
                return Err(Error::read("read", &node.path)(error));
            }
            self.write(&buffer[..length])?;
            left -= length as u64;
        }
        self.buffer = buffer;
        self.summary.bytes += size;
        let padding = usize::try_from(size.next_multiple_of(BLOCK as u64) - size).unwrap_or(0);
        self.write(&[0; BLOCK][..padding])
    }

    /// Writes zeros in place of what a file has no more.
    fn zeros(&mut self, mut left: u64) -> Result<(), Error> {
        while left > 0 {
            let length = left.min(BLOCK as u64);
            self.write(&[0; BLOCK][..usize::try_from(length).unwrap_or(BLOCK)])?;
            left -= length;
        }
        Ok(())
    }

    /// Writes a node's header.
    fn head(
        &mut self,
        node: &Node,
        kind: tar::EntryType,
        link: &[u8],
        size: u64,
    ) -> Result<(), Error> {
        self.summary.entries += 1;
        let stat = &node.stat;
        let mut records = pax::Builder::default();
        let mut header = blank(kind);
        header.set_mode(stat.st_mode & 0o7777);
        if stat.st_uid > MAX_ID {
            records.push(b"uid", stat.st_uid.to_string().as_bytes());
        } else {
            header.set_uid(u64::from(stat.st_uid));
        }
        if stat.st_gid > MAX_ID {
            records.push(b"gid", stat.st_gid.to_string().as_bytes());
        } else {
            header.set_gid(u64::from(stat.st_gid));
        }
        if size > MAX_SIZE {
            records.push(b"size", size.to_string().as_bytes());
        } else {
            header.set_size(size);
        }
        self.set_time(&mut header, &mut records, node);
        if matches!(kind, tar::EntryType::Char | tar::EntryType::Block)
            && let Some(ustar) = header.as_ustar_mut()
        {
            ustar.set_device_major(major(stat.st_rdev));
            ustar.set_device_minor(minor(stat.st_rdev));
        }
        set_link(&mut header, &mut records, link);
        set_path(&mut header, &mut records, &archive_path(node));
        if kind != tar::EntryType::Link {
            for (name, value) in node.xattrs()? {
                if is_portable(name) {
                    records.push_xattr(name, value);
                }
            }
        }
        self.header(header, records)
    }

    fn set_time(&self, header: &mut tar::Header, records: &mut pax::Builder, node: &Node) {
        let mut seconds = node.stat.st_mtime;
        let mut nanoseconds = u32::try_from(node.stat.st_mtime_nsec).unwrap_or(0);
        if let Some(latest) = self.options.clamp_mtime
            && seconds >= latest
        {
            (seconds, nanoseconds) = (latest, 0);
        }
        match u64::try_from(seconds) {
            Ok(whole) if whole <= MAX_SIZE => {
                header.set_mtime(whole);
                if nanoseconds != 0 {
                    records.push_time(b"mtime", seconds, nanoseconds);
                }
            }
            // Before 1970, or after 2242.
            _ => records.push_time(b"mtime", seconds, nanoseconds),
        }
    }

    /// Writes a header block, after the extended header it needs.
    fn header(&mut self, mut header: tar::Header, records: pax::Builder) -> Result<(), Error> {
        if !records.is_empty() {
            let records = records.into_bytes();
            let mut extended = blank(tar::EntryType::XHeader);
            // The name serves readers that do not know PAX; it must not vary.
            let old = extended.as_old_mut();
            old.name[..9].copy_from_slice(b"PaxHeader");
            extended.set_mode(0o644);
            extended.set_size(records.len() as u64);
            extended.set_cksum();
            self.write(extended.as_bytes())?;
            self.write(&records)?;
            let padding = records.len().next_multiple_of(BLOCK) - records.len();
            self.write(&[0; BLOCK][..padding])?;
        }
        header.set_cksum();
        self.write(header.as_bytes())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.out.write_all(bytes).map_err(Error::Write)
    }
}

/// A header whose numbers are all 0: an empty field is no number to some readers.
pub(crate) fn blank(kind: tar::EntryType) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header.set_mtime(0);
    if let Some(ustar) = header.as_ustar_mut() {
        ustar.set_device_major(0);
        ustar.set_device_minor(0);
    }
    header
}

/// The name in the archive: directories end in a slash, the root is `./`.
fn archive_path(node: &Node) -> Vec<u8> {
    match (node.path.is_empty(), node.is_directory()) {
        (true, _) => b"./".to_vec(),
        (false, true) => [&node.path[..], b"/"].concat(),
        (false, false) => node.path.clone(),
    }
}

/// Puts a name into its field, or into prefix and name, or into a record.
fn set_path(header: &mut tar::Header, records: &mut pax::Builder, path: &[u8]) {
    let fits = path.len() <= 100;
    let split = if fits { None } else { split_point(path) };
    if let Some(ustar) = header.as_ustar_mut() {
        match split {
            Some(slash) => {
                ustar.prefix[..slash].copy_from_slice(&path[..slash]);
                let name = &path[slash + 1..];
                ustar.name[..name.len()].copy_from_slice(name);
            }
            None => {
                let shown = path.len().min(100);
                ustar.name[..shown].copy_from_slice(&path[..shown]);
            }
        }
    }
    if !fits && split.is_none() {
        records.push(b"path", path);
    }
}

/// The slash at which a long name falls into a prefix of 155 bytes and a name of 100.
fn split_point(path: &[u8]) -> Option<usize> {
    let earliest = path.len().checked_sub(101)?;
    (earliest..path.len().min(156)).find(|&at| path[at] == b'/' && at > 0 && at + 1 < path.len())
}

fn set_link(header: &mut tar::Header, records: &mut pax::Builder, link: &[u8]) {
    let shown = link.len().min(100);
    header.as_old_mut().linkname[..shown].copy_from_slice(&link[..shown]);
    if link.len() > 100 {
        records.push(b"linkpath", link);
    }
}

/// Whether an attribute means the same on another machine.
fn is_portable(name: &[u8]) -> bool {
    !name.starts_with(b"trusted.overlay.")
        && !name.starts_with(b"user.overlay.")
        && name != b"security.selinux"
        && name != b"security.ima"
        && name != b"security.evm"
        // A record's key ends at the first of these.
        && !name.contains(&b'=')
}
