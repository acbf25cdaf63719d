//! Copies a tree by way of an archive that never exists.
//!
//! One thread reads the source as [`super::diff`] does, another writes as
//! [`super::apply`] does, a pipe between them: neither follows a link, and everything a
//! layer can hold is copied: owners, times, attributes, hard links, devices.

use std::io;
use std::os::fd::AsFd;

use super::{apply, diff};

/// A tree could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The pipe could not be made.
    #[error("make a pipe")]
    Pipe(#[source] io::Error),
    /// The source could not be read.
    #[error("read the tree")]
    Read(#[source] diff::Error),
    /// The target could not be written.
    #[error("write the copy")]
    Write(#[source] apply::Error),
}

/// Copies what is in the directory `source`, and its own owner, mode and times, to the directory `target`.
///
/// What `target` has under the same names is replaced. Without root rights the copy
/// belongs to the caller, and devices are left out.
///
/// # Errors
/// When something can not be read or written; `target` then has a part of the copy.
pub fn copy_tree(source: impl AsFd + Sync, target: impl AsFd) -> Result<(), Error> {
    let (reader, writer) = io::pipe().map_err(Error::Pipe)?;
    let options = apply::Options {
        ownership: rustix::process::geteuid().is_root(),
        ..apply::Options::default()
    };
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let out = io::BufWriter::with_capacity(64 << 10, writer);
            diff::write_tree_at(source.as_fd(), out, &diff::Options::default())
        });
        // The reader goes with this call, so that a failure here ends the other thread too.
        let written = apply::apply(reader, target, &options);
        match (written, reading.join()) {
            // A reader that failed leaves a truncated archive behind: its reason comes first.
            (_, Ok(Err(error))) if !is_broken_pipe(&error) => Err(Error::Read(error)),
            (Err(error), _) => Err(Error::Write(error)),
            (Ok(_), Ok(_)) => Ok(()),
            (Ok(_), Err(panic)) => std::panic::resume_unwind(panic),
        }
    })
}

fn is_broken_pipe(error: &diff::Error) -> bool {
    matches!(error, diff::Error::Write(source) if source.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};

    #[test]
    fn copies_with_times_and_links() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(from.path().join("d")).unwrap();
        fs::write(from.path().join("d/f"), vec![1; 300_000]).unwrap();
        fs::hard_link(from.path().join("d/f"), from.path().join("g")).unwrap();
        std::os::unix::fs::symlink("/nowhere", from.path().join("l")).unwrap();
        let open = |directory: &tempfile::TempDir| File::open(directory.path()).unwrap();
        copy_tree(open(&from), open(&to)).unwrap();
        let mut changes = Vec::new();
        let options = diff::Options::default();
        let summary = diff::write_changes(from.path(), to.path(), &mut changes, &options).unwrap();
        assert_eq!(summary.entries, 0);
    }

    #[test]
    fn failures_of_either_side_end_both() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(from.path().join("a"), vec![1; 1 << 20]).unwrap();
        fs::write(from.path().join(".wh.x"), "").unwrap();
        let open = |directory: &tempfile::TempDir| File::open(directory.path()).unwrap();
        assert!(matches!(
            copy_tree(open(&from), open(&to)),
            Err(Error::Read(_))
        ));
        let file = File::open("/dev/null").unwrap();
        assert!(matches!(copy_tree(open(&to), file), Err(Error::Write(_))));
    }
}
