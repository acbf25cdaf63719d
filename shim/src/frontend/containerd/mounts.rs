//! The root file system that containerd asks for: mounts, one upon the other, at `rootfs` in the bundle.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change,
    mount_remount, unmount,
};
use rustix::process::{chdir, fchdir};

use super::message::Mount;
use crate::error::Error;

/// Most bytes of options that `mount(2)` takes: a page with its final zero.
const LONGEST_DATA: usize = 4095;

/// The option of an overlay that names its layers.
const LOWER: &str = "lowerdir=";

/// Mounts everything at `rootfs`; undoes it when one fails.
pub(crate) fn mount_all(mounts: &[Mount], rootfs: &Path) -> Result<(), Error> {
    for entry in mounts {
        let target = rootfs.join(entry.target.trim_start_matches('/'));
        if let Err(error) = mount_one(entry, &target) {
            unmount_all(rootfs);
            return Err(error);
        }
    }
    Ok(())
}

fn mount_one(entry: &Mount, target: &Path) -> Result<(), Error> {
    let parsed = Options::parse(&entry.options);
    let failed = Error::path("mount root file system at", target);
    if entry.kind == "bind" || entry.kind == "rbind" || parsed.bind {
        let work = || {
            if parsed.recursive || entry.kind == "rbind" {
                mount_bind_recursive(entry.source.as_str(), target)?;
            } else {
                rustix::mount::mount_bind(entry.source.as_str(), target)?;
            }
            if !parsed.flags.is_empty() {
                mount_remount(target, MountFlags::BIND | parsed.flags, "")?;
            }
            Ok::<(), rustix::io::Errno>(())
        };
        work().map_err(failed)?;
    } else {
        mount_data(entry, target, &parsed)?;
    }
    if let Some(propagation) = parsed.propagation {
        mount_change(target, propagation).map_err(Error::path("set propagation of", target))?;
    }
    Ok(())
}

/// Mounts a file system. Of more options than a page holds the layers are named by where they are from their common
/// directory, which is the working directory meanwhile: there is one thread.
fn mount_data(entry: &Mount, target: &Path, parsed: &Options) -> Result<(), Error> {
    let mount = |data: &str, target: &Path| {
        let data = CString::new(data)
            .map_err(|_| Error::Usage(format!("options of a mount with a NUL: {data:?}")))?;
        mount(
            entry.source.as_str(),
            target,
            entry.kind.as_str(),
            parsed.flags,
            Some(&*data),
        )
        .map_err(Error::path("mount root file system at", target))
    };
    if parsed.data.len() <= LONGEST_DATA {
        return mount(&parsed.data, target);
    }
    let shorter = shorten(&parsed.data).filter(|(_, data)| data.len() <= LONGEST_DATA);
    let Some((directory, data)) = shorter else {
        return Err(Error::Usage(format!(
            "a mount with {} bytes of options: mount(2) takes {LONGEST_DATA}",
            parsed.data.len()
        )));
    };
    let target = std::path::absolute(target).map_err(Error::path("find", target))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let here = open(".", flags, Mode::empty()).map_err(Error::call("open working directory"))?;
    chdir(&directory).map_err(Error::path("change to", &directory))?;
    let outcome = mount(&data, &target);
    fchdir(here).map_err(Error::call("change back to the working directory"))?;
    outcome
}

/// Names the lower directories of an overlay by where they are from the directory that all are in. Returns that, and the
/// options; nothing where that makes no sense.
fn shorten(data: &str) -> Option<(PathBuf, String)> {
    let mut options = split(data, b',');
    let lower = options
        .iter_mut()
        .find(|option| option.starts_with(LOWER))?;
    let layers = split(&lower[LOWER.len()..], b':');
    // An empty one is half of `::`, before layers that hold data alone.
    let mut named = layers.iter().filter(|layer| !layer.is_empty());
    let above = |path: &'_ str| path.rfind('/').map(|end| path[..end].to_owned());
    let mut parent = above(named.next()?.trim_end_matches('/'))?;
    for layer in named {
        while !layer
            .strip_prefix(&parent)
            .is_some_and(|rest| rest.trim_end_matches('/').len() > 1 && rest.starts_with('/'))
        {
            parent = above(&parent)?;
        }
    }
    // The root would save nothing.
    if !parent.starts_with('/') {
        return None;
    }
    let relative: Vec<&str> = layers
        .iter()
        .map(|layer| layer.get(parent.len() + 1..).unwrap_or_default())
        .collect();
    let short = format!("{LOWER}{}", relative.join(":"));
    *lower = &short;
    let data = options.join(",");
    Some((unescaped(&parent).into(), data))
}

/// The parts of a text between separators that no backslash is before.
fn split(text: &str, separator: u8) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (index, byte) in text.bytes().enumerate() {
        if byte == separator && !escaped {
            parts.push(&text[start..index]);
            start = index + 1;
        }
        escaped = byte == b'\\' && !escaped;
    }
    parts.push(&text[start..]);
    parts
}

/// Text without the backslashes that say that what follows is to be taken as it is.
fn unescaped(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        plain.extend(match character {
            '\\' => characters.next(),
            other => Some(other),
        });
    }
    plain
}

/// Takes away everything mounted at or below `rootfs`.
pub(crate) fn unmount_all(rootfs: &Path) {
    let Ok(table) = std::fs::read_to_string("/proc/self/mountinfo") else {
        return;
    };
    let mut found: Vec<std::path::PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape)
        .filter(|path| path.starts_with(rootfs))
        .collect();
    // Later ones lie on earlier ones.
    found.reverse();
    for path in found {
        if let Err(errno) = unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            crate::diag::warning!("unmount {}: {errno}", path.display());
        }
    }
}

/// A path of mountinfo: blanks and the like are written as three octal digits.
fn unescape(text: &str) -> std::path::PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(value) => {
                bytes.push(value);
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

/// Options of a mount, sorted.
#[derive(Debug, PartialEq)]
struct Options {
    flags: MountFlags,
    propagation: Option<MountPropagationFlags>,
    bind: bool,
    recursive: bool,
    /// What is for the file system.
    data: String,
}

impl Options {
    fn parse(words: &[String]) -> Self {
        let mut options = Self {
            flags: MountFlags::empty(),
            propagation: None,
            bind: false,
            recursive: false,
            data: String::new(),
        };
        let mut data: Vec<&str> = Vec::new();
        for word in words {
            let flag = match word.as_str() {
                "" | "defaults" | "rw" | "exec" | "suid" | "dev" | "async" => continue,
                "bind" => {
                    options.bind = true;
                    continue;
                }
                "rbind" => {
                    options.bind = true;
                    options.recursive = true;
                    continue;
                }
                "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave"
                | "unbindable" | "runbindable" => {
                    options.propagation = propagation(word);
                    continue;
                }
                "ro" => MountFlags::RDONLY,
                "nodev" => MountFlags::NODEV,
                "noexec" => MountFlags::NOEXEC,
                "nosuid" => MountFlags::NOSUID,
                "noatime" => MountFlags::NOATIME,
                "nodiratime" => MountFlags::NODIRATIME,
                "relatime" => MountFlags::RELATIME,
                "strictatime" => MountFlags::STRICTATIME,
                "sync" => MountFlags::SYNCHRONOUS,
                "dirsync" => MountFlags::DIRSYNC,
                // A loop device is containerd's to set up; and X-… is for others' eyes.
                word if word.starts_with("X-") || word.starts_with("x-") => continue,
                word => {
                    data.push(word);
                    continue;
                }
            };
            options.flags |= flag;
        }
        options.data = data.join(",");
        options
    }
}

fn propagation(word: &str) -> Option<MountPropagationFlags> {
    let (name, recursive) = match word {
        "rprivate" | "rshared" | "rslave" | "runbindable" => (&word[1..], true),
        word => (word, false),
    };
    let flag = match name {
        "private" => MountPropagationFlags::PRIVATE,
        "shared" => MountPropagationFlags::SHARED,
        "slave" => MountPropagationFlags::DOWNSTREAM,
        "unbindable" => MountPropagationFlags::UNBINDABLE,
        _ => return None,
    };
    let depth = if recursive {
        MountPropagationFlags::REC
    } else {
        MountPropagationFlags::empty()
    };
    Some(flag | depth)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_sorted() {
        let parse = |text: &str| {
            let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
            Options::parse(&words)
        };
        let overlay = parse("index=off workdir=/w upperdir=/u lowerdir=/a:/b ro");
        assert_eq!(
            overlay.data,
            "index=off,workdir=/w,upperdir=/u,lowerdir=/a:/b"
        );
        assert_eq!(overlay.flags, MountFlags::RDONLY);
        let bind = parse("rbind ro rprivate");
        assert!(bind.bind && bind.recursive);
        assert!(bind.propagation.is_some());
        assert_eq!(bind.data, "");
    }

    #[test]
    fn layers_are_named_from_their_common_directory() {
        for (data, expected) in [
            (
                "index=off,upperdir=/s/3/fs,workdir=/s/3/w,lowerdir=/s/2/fs:/s/1/fs",
                Some((
                    "/s",
                    "index=off,upperdir=/s/3/fs,workdir=/s/3/w,lowerdir=2/fs:1/fs",
                )),
            ),
            ("lowerdir=/s/a", Some(("/s", "lowerdir=a"))),
            ("lowerdir=/s/a/b:/s/a", Some(("/s", "lowerdir=a/b:a"))),
            ("lowerdir=/s/ab/c:/s/a/c", Some(("/s", "lowerdir=ab/c:a/c"))),
            ("lowerdir=/s/a/:/s/b/,ro", Some(("/s", "lowerdir=a/:b/,ro"))),
            ("lowerdir=/s/a::/s/data", Some(("/s", "lowerdir=a::data"))),
            ("lowerdir=/a/b:/c/d", None),
            (
                r"lowerdir=/s\:1/a\:b:/s\:1/c\,d,x",
                Some(("/s:1", r"lowerdir=a\:b:c\,d,x")),
            ),
            (r"lowerdir=/s/\\:/s/t", Some(("/s", r"lowerdir=\\:t"))),
            ("lowerdir=a/b:a/c", None),
            ("lowerdir=/a/b:c", None),
            ("lowerdir=", None),
            ("size=1", None),
        ] {
            let expected = expected.map(|(directory, data)| (directory.into(), data.to_owned()));
            assert_eq!(shorten(data), expected, "{data}");
        }
    }

    #[test]
    fn a_mount_with_a_nul_is_refused() {
        let entry = Mount {
            kind: "tmpfs".into(),
            options: vec!["size=1\0".into()],
            ..Mount::default()
        };
        let place = tempfile::tempdir().unwrap();
        let error = mount_one(&entry, place.path()).unwrap_err();
        assert!(error.chain().contains("NUL"), "{}", error.chain());
    }

    #[test]
    fn blanks_in_paths() {
        assert_eq!(unescape("/a\\040b"), Path::new("/a b"));
        assert_eq!(unescape("/a\\b"), Path::new("/a\\b"));
    }
}
