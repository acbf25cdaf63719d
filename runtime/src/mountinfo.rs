//! What is mounted where: `/proc/self/mountinfo`, see proc_pid_mountinfo(5).
//!
//! Takes long to produce on hosts with many mounts, so it is for where nothing else tells.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::failure::errno_of;

/// What is used of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Which part of the file system is mounted.
    pub(crate) root: PathBuf,
    /// Where.
    pub(crate) point: PathBuf,
    /// Type of the file system.
    pub(crate) kind: String,
    /// Options of the file system.
    pub(crate) options: String,
}

/// Every mount of this mount namespace below the root.
pub(crate) fn read() -> Result<Vec<Mount>, Errno> {
    let table = std::fs::read("/proc/self/mountinfo").map_err(|error| errno_of(&error))?;
    Ok(parse(&table))
}

/// Every mount of a table; lines that are none are passed over.
pub(crate) fn parse(table: &[u8]) -> Vec<Mount> {
    table
        .split(|byte| *byte == b'\n')
        .filter_map(line)
        .collect()
}

fn line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    // Optional fields end with a dash.
    fields.by_ref().find(|field| *field == b"-")?;
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    Some(Mount {
        root: unescape(root),
        point: unescape(point),
        kind: text(fields.next()?),
        options: text(fields.nth(1)?),
    })
}

/// Undoes the octal numbers that stand for blanks and the like.
fn unescape(mut rest: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(rest.len());
    while let Some((&byte, after)) = rest.split_first() {
        let number = after
            .get(..3)
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match number {
            Some(number) if byte == b'\\' => {
                bytes.push(number);
                rest = &after[3..];
            }
            _ => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let table = b"36 31 0:33 /a\\134b /c\\040d\\011e rw,relatime - cgroup none rw,devices\n\
            37 31 0:34 / /\xff rw shared:7 master:1 - proc proc rw\n\
            nonsense\n38 31 0:35 / /x rw - broken\n";
        let mount = |root: &str, point: &[u8], kind: &str, options: &str| Mount {
            root: root.into(),
            point: OsString::from_vec(point.to_vec()).into(),
            kind: kind.into(),
            options: options.into(),
        };
        assert_eq!(
            parse(table),
            [
                mount("/a\\b", b"/c d\te", "cgroup", "rw,devices"),
                mount("/", b"/\xff", "proc", "rw"),
            ]
        );
    }

    #[test]
    fn this_process_has_a_proc() {
        let found = read().unwrap();
        let proc = found.iter().find(|mount| mount.kind == "proc").unwrap();
        assert_eq!(proc.root.to_str(), Some("/"));
    }
}
