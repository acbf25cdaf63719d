//! Control files: whole-value reads and writes, each with the file and the value in its error.
//!
//! A control file takes one value per `write(2)` and gives its whole content to one `read(2)`, so there is no buffering
//! here. Paths are plain: nothing below a cgroup mount is a symbolic link.

use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use super::{Error, Result};

/// Most control files fit; `memory.stat` and long `cgroup.procs` take more rounds.
const CHUNK: usize = 4096;

/// Writes a value, opening and closing the file.
pub(super) fn write(path: &Path, value: &str) -> Result<()> {
    write_raw(path, value).map_err(|source| Error::Write {
        path: path.to_owned(),
        value: value.to_owned(),
        source,
    })
}

/// [`write`] with the bare error number, for callers that expect some of them.
pub(super) fn write_raw(path: &Path, value: &str) -> Result<(), Errno> {
    let file = rustix::fs::openat(CWD, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, value.as_bytes()).map(drop)
}

/// Writes values one after the other through one open file.
pub(super) fn write_each(path: &Path, values: &[String]) -> Result<()> {
    if values.is_empty() {
        return Ok(());
    }
    let failed = |value: &String, source| Error::Write {
        path: path.to_owned(),
        value: value.clone(),
        source,
    };
    let file = rustix::fs::openat(CWD, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|source| failed(&values[0], source))?;
    for value in values {
        rustix::io::write(&file, value.as_bytes()).map_err(|source| failed(value, source))?;
    }
    Ok(())
}

/// Reads a whole file.
pub(super) fn read(path: &Path) -> Result<String> {
    read_raw(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })
}

/// [`read`] with the bare error number.
pub(super) fn read_raw(path: &Path) -> Result<String, Errno> {
    let file = rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut content = Vec::with_capacity(CHUNK);
    loop {
        content.reserve(CHUNK);
        let read = rustix::io::read(&file, rustix::buffer::spare_capacity(&mut content))?;
        // A seq_file ends a read early at a record border, so only a read of nothing is the end; files of one
        // record are known to be over when the kernel returned less than a page's worth and a final line feed.
        if read == 0 || (read < CHUNK / 2 && content.len() == read && content.ends_with(b"\n")) {
            break;
        }
    }
    String::from_utf8(content).map_err(|_| Errno::ILSEQ)
}

/// Reads a file that holds one number; `max` and the v1 "no limit" sentinel become `None`.
pub(super) fn read_number(path: &Path) -> Result<Option<u64>> {
    let text = read(path)?;
    let text = text.trim();
    if text == "max" {
        return Ok(None);
    }
    match text.parse::<u64>() {
        // cgroup v1 spells "no limit" as the largest signed number rounded down to a page.
        Ok(value) if value >= V1_UNLIMITED => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(_) => Err(Error::Malformed {
            path: path.to_owned(),
            content: text.to_owned(),
        }),
    }
}

/// `PAGE_COUNTER_MAX` with the largest page size of any supported architecture (64 KiB).
const V1_UNLIMITED: u64 = 0x7fff_ffff_ffff_0000;

/// Finds `KEY VALUE` in a flat-keyed file such as `memory.events`.
pub(super) fn read_key(path: &Path, key: &str) -> Result<Option<u64>> {
    let text = read(path)?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    match line.map(str::parse) {
        None => Ok(None),
        Some(Ok(value)) => Ok(Some(value)),
        Some(Err(_)) => Err(Error::Malformed {
            path: path.to_owned(),
            content: text,
        }),
    }
}

/// Names of the child cgroups of a directory.
pub(super) fn children(path: &Path) -> Result<Vec<PathBuf>, Errno> {
    let directory = rustix::fs::openat(
        CWD,
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut found = Vec::new();
    for entry in rustix::fs::Dir::new(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if entry.file_type() == rustix::fs::FileType::Directory && name != b"." && name != b".." {
            found.push(path.join(std::ffi::OsStr::new(
                std::str::from_utf8(name).map_err(|_| Errno::ILSEQ)?,
            )));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        let directory = std::env::temp_dir().join(format!("qrun-file-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let file = directory.join("value");
        for (text, expected) in [
            ("12\n", Some(12)),
            ("max\n", None),
            ("9223372036854771712\n", None),
            ("0\n", Some(0)),
        ] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(read_number(&file).unwrap(), expected, "{text:?}");
        }
        std::fs::write(&file, "twelve\n").unwrap();
        assert!(matches!(read_number(&file), Err(Error::Malformed { .. })));
        std::fs::write(&file, "oom 1\noom_kill 7\n").unwrap();
        assert_eq!(read_key(&file, "oom_kill").unwrap(), Some(7));
        assert_eq!(read_key(&file, "oom_group_kill").unwrap(), None);
        std::fs::write(&file, "x".repeat(10_000)).unwrap();
        assert_eq!(read(&file).unwrap().len(), 10_000);
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
