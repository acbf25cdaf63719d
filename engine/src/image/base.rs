//! The basic image: made of a root file system's archive, or of nothing but this machine's static busybox.

use std::fs::{self, File, Permissions};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bundle_tools::image::{ContainerConfig, History, ImageConfig};
use bundle_tools::layer::compression::decoder;
use bundle_tools::layer::diff;

use super::layers::{self, Slot};
use super::{Error, Image, Reference, Result, WriterGuard, add_layer_image, collect};
use crate::store::Store;

/// Where commands are looked for in the image.
const IMAGE_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Directories of a root file system, with their modes.
const DIRECTORIES: [(&str, u32); 14] = [
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sbin", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr/bin", 0o755),
    ("usr/sbin", 0o755),
    ("var/spool/mail", 0o755),
    ("var/tmp", 0o1777),
];
/// Files without which users, groups and names don't resolve.
const FILES: [(&str, &str); 4] = [
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\n\
         daemon:x:1:1:daemon:/usr/sbin:/bin/false\n\
         nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    ),
    (
        "etc/group",
        "root:x:0:\ndaemon:x:1:\ntty:x:5:\ndisk:x:6:\nmail:x:8:\nusers:x:100:\nnogroup:x:65534:\n",
    ),
    (
        "etc/nsswitch.conf",
        "passwd: files\ngroup: files\nhosts: files dns\n",
    ),
    ("etc/profile", "export PS1='\\u@\\h:\\w\\$ '\n"),
];

/// Makes an image of one layer under the name `reference`.
///
/// With `source` the layer is that archive of a root file system, plain or compressed; without, it is a minimal root
/// file system around the machine's own busybox, which has to be statically linked.
///
/// # Errors
/// An unreadable archive; no static busybox; a store that can't be written.
pub fn build_base(store: &Store, source: Option<&Path>, reference: &Reference) -> Result<Image> {
    match source {
        Some(archive) => from_archive(store, archive, reference),
        None => {
            let result = from_busybox(store, reference);
            if result.is_err() {
                // As in [`add_layer_image`], which could not do it while the scratch directory was in use.
                let _ = collect(store);
            }
            result
        }
    }
}

fn from_archive(store: &Store, path: &Path, reference: &Reference) -> Result<Image> {
    let file = File::open(path).map_err(|source| file_error("open", path, source))?;
    let reader = BufReader::with_capacity(1 << 17, file);
    let layer = move |out: &mut dyn io::Write| {
        let mut archive = decoder(reader)?;
        io::copy(&mut archive, out)?;
        Ok(())
    };
    let origin = path.file_name().unwrap_or_default().to_string_lossy();
    let config = config(&format!("build-base {origin}"));
    add_layer_image(store, None, Box::new(layer), config, Some(reference))
}

fn from_busybox(store: &Store, reference: &Reference) -> Result<Image> {
    let _guard = WriterGuard::take(store)?;
    let busybox = find_busybox()?;
    let scratch = layers::anonymous(store)?;
    write_tree(&scratch, &busybox)?;
    let tree = scratch.diff();
    let layer = move |out: &mut dyn io::Write| {
        diff::write_tree(&tree, out, &diff::Options::default())?;
        Ok(())
    };
    let config = config("build-base busybox");
    add_layer_image(store, None, Box::new(layer), config, Some(reference))
}

fn config(created_by: &str) -> ImageConfig {
    ImageConfig {
        config: ContainerConfig {
            env: vec![IMAGE_PATH.to_owned()],
            cmd: Some(vec!["sh".to_owned()]),
            ..ContainerConfig::default()
        },
        history: vec![History {
            created: Some(jiff::Timestamp::now().to_string()),
            created_by: Some(created_by.to_owned()),
            ..History::default()
        }],
        ..ImageConfig::default()
    }
}

fn write_tree(scratch: &Slot, busybox: &Path) -> Result<()> {
    let root = scratch.diff();
    for (name, mode) in DIRECTORIES {
        let path = root.join(name);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&path)
            .map_err(|source| file_error("make directory", &path, source))?;
        set_mode(&path, mode)?;
    }
    for (name, content) in FILES {
        let path = root.join(name);
        fs::write(&path, content).map_err(|source| file_error("write", &path, source))?;
        set_mode(&path, 0o644)?;
    }
    let binary = root.join("bin/busybox");
    fs::copy(busybox, &binary).map_err(|source| file_error("copy", busybox, source))?;
    set_mode(&binary, 0o755)?;
    for applet in applets(busybox)? {
        let link = root.join(&applet);
        // What an initial RAM disk starts with; no container does.
        if link == binary || applet == Path::new("linuxrc") {
            continue;
        }
        if let Some(parent) = link.parent() {
            fs::create_dir_all(parent)
                .map_err(|source| file_error("make directory", parent, source))?;
        }
        match fs::hard_link(&binary, &link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(file_error("link", &link, error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The paths busybox wants to be found at, relative to the root.
fn applets(busybox: &Path) -> Result<Vec<PathBuf>> {
    let ask = |option: &str| {
        Command::new(busybox)
            .arg(option)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .map_err(|source| file_error("run", busybox, source))
    };
    let full = ask("--list-full")?;
    let (answer, prefix) = if full.status.success() {
        (full, "")
    } else {
        (ask("--list")?, "bin/")
    };
    if !answer.status.success() {
        return Err(Error::Base(format!(
            "{} doesn't list its applets",
            busybox.display()
        )));
    }
    let text = String::from_utf8_lossy(&answer.stdout);
    let is_plain = |line: &&str| {
        let parts = || line.split('/');
        !line.is_empty()
            && !line.starts_with('/')
            && parts().all(|part| !matches!(part, "" | "." | ".."))
    };
    Ok(text
        .lines()
        .map(str::trim)
        .filter(is_plain)
        .map(|line| PathBuf::from(format!("{prefix}{line}")))
        .collect())
}

/// The first static busybox of `PATH`, or of the places where distributions put it.
fn find_busybox() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = [
        "/bin",
        "/usr/bin",
        "/sbin",
        "/usr/sbin",
        "/usr/lib/initramfs-tools/bin",
    ];
    let directories = std::env::split_paths(&path).chain(usual.iter().map(PathBuf::from));
    let mut dynamic = None;
    for candidate in directories.flat_map(|dir| [dir.join("busybox"), dir.join("busybox.static")]) {
        let executable = fs::metadata(&candidate)
            .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0);
        if !executable {
            continue;
        }
        let file =
            File::open(&candidate).map_err(|source| file_error("open", &candidate, source))?;
        if is_static(file).map_err(|source| file_error("read", &candidate, source))? {
            return Ok(candidate);
        }
        dynamic.get_or_insert(candidate);
    }
    Err(Error::Base(match dynamic {
        Some(path) => format!(
            "{} is linked dynamically and can't run in an image on its own; install a static one (package busybox-static)",
            path.display()
        ),
        None => "there is no busybox on this machine; install a static one (package busybox-static) or name the \
                 archive of a root file system"
            .to_owned(),
    }))
}

/// Whether an ELF file runs without a dynamic linker: it has no `PT_INTERP` program header (elf(5)).
fn is_static(mut file: impl Read) -> io::Result<bool> {
    const PT_INTERP: u32 = 3;
    let mut start = vec![0; 64 << 10];
    let mut length = 0;
    while length < start.len() {
        match file.read(&mut start[length..])? {
            0 => break,
            count => length += count,
        }
    }
    start.truncate(length);
    Ok(program_header_types(&start).is_some_and(|types| !types.contains(&PT_INTERP)))
}

/// The types of an ELF file's program headers; `None` when it is no ELF file of this machine's byte order.
fn program_header_types(file: &[u8]) -> Option<Vec<u32>> {
    let native = if cfg!(target_endian = "little") { 1 } else { 2 };
    let wide = match file.get(..6)? {
        [0x7f, b'E', b'L', b'F', class @ (1 | 2), order] if *order == native => *class == 2,
        _ => return None,
    };
    let half = |at: usize| {
        Some(usize::from(u16::from_ne_bytes(
            file.get(at..at + 2)?.try_into().ok()?,
        )))
    };
    let word = |at: usize| Some(u32::from_ne_bytes(file.get(at..at + 4)?.try_into().ok()?));
    let (offset, size, count) = if wide {
        let offset = u64::from_ne_bytes(file.get(32..40)?.try_into().ok()?);
        (usize::try_from(offset).ok()?, half(54)?, half(56)?)
    } else {
        (usize::try_from(word(28)?).ok()?, half(42)?, half(44)?)
    };
    (0..count)
        .map(|number| word(offset.checked_add(number * size)?))
        .collect()
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(|source| file_error("set the mode of", path, source))
}

fn file_error(action: &'static str, path: &Path, source: io::Error) -> Error {
    Error::BaseFile {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_linker_is_seen() {
        let mut file = [0; 64 + 2 * 56];
        file[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
        file[32] = 64;
        file[54] = 56;
        file[56] = 2;
        file[64] = 1;
        file[64 + 56] = 6;
        assert!(is_static(&file[..]).unwrap());
        file[64 + 56] = 3;
        assert!(!is_static(&file[..]).unwrap());
        assert!(!is_static(&b"#!/bin/sh\n"[..]).unwrap());
        assert!(!is_static(&file[..100]).unwrap());
    }
}
