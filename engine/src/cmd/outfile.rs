//! Archives on their way out: into a file that appears when it is complete, or into a pipe.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, CWD, OFlags};

/// Bytes that are gathered before they are written.
const BUFFER: usize = 256 << 10;

/// Lets `write` write to the file `path`, or to standard output, which must not be a terminal.
///
/// A file gets its name at the end, in place of one that had it: nobody sees half an archive, and a killed command
/// leaves none.
pub(crate) fn write_to(
    path: Option<&Path>,
    write: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    let Some(path) = path.filter(|path| *path != Path::new("-")) else {
        let stdout = io::stdout();
        if stdout.is_terminal() {
            bail!("refusing to write an archive to a terminal: use -o FILE, or redirect");
        }
        let mut out = BufWriter::with_capacity(BUFFER, stdout.lock());
        write(&mut out)?;
        return Ok(out.flush()?);
    };
    let failed = || format!("cannot write {}", path.display());
    // A pipe or a device is written to as it is.
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        let file = OpenOptions::new().write(true).open(path);
        return into(file.with_context(failed)?, write).map(drop);
    }
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    // The directory's own file system decides; what it can't do without a name is done with one.
    let nameless = OpenOptions::new()
        .write(true)
        .mode(0o600)
        .custom_flags(OFlags::TMPFILE.bits().cast_signed())
        .open(directory);
    match nameless {
        Ok(file) => {
            let file = into(file, write)?;
            give_name(&file, path).with_context(failed)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(error).with_context(failed),
        Err(_) => {
            let temporary = temporary(path);
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&temporary);
            let result = into(file.with_context(failed)?, write)
                .and_then(|_| fs::rename(&temporary, path).with_context(failed));
            result.inspect_err(|_| drop(fs::remove_file(&temporary)))
        }
    }
}

fn into(file: File, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<File> {
    let mut out = BufWriter::with_capacity(BUFFER, file);
    write(&mut out)?;
    Ok(out.into_inner().map_err(io::IntoInnerError::into_error)?)
}

/// A link can't replace a file, a rename can: so the file gets a name beside, for a moment.
fn give_name(file: &File, path: &Path) -> io::Result<()> {
    let own = format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&file.as_fd())
    );
    let link = |to: &Path| rustix::fs::linkat(CWD, &own, CWD, to, AtFlags::SYMLINK_FOLLOW);
    match link(path) {
        Ok(()) => return Ok(()),
        Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let temporary = temporary(path);
    drop(fs::remove_file(&temporary));
    link(&temporary)?;
    fs::rename(&temporary, path).inspect_err(|_| drop(fs::remove_file(&temporary)))
}

fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.tmp-{}", std::process::id()))
}
