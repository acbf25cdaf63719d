//! Where the programs under test are.

use std::path::{Path, PathBuf};

/// Gives the path of a program under test: in `$QSTACK_BIN`, or in `release/` of the target
/// directory, where `hack/build.sh` leaves it.
///
/// # Panics
/// When it has not been built.
#[must_use]
pub fn built(name: &str) -> PathBuf {
    let path = directory().join(name);
    assert!(
        path.is_file(),
        "{} is not built: run hack/build.sh, or set QSTACK_BIN",
        path.display()
    );
    path
}

/// The directory the programs under test are in.
#[must_use]
pub fn directory() -> PathBuf {
    match std::env::var_os("QSTACK_BIN") {
        Some(directory) => PathBuf::from(directory),
        None => target().join("release"),
    }
}

/// Cargo's target directory.
#[must_use]
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => workspace().join(directory),
        None => workspace().join("target"),
    }
}

/// The top of the work tree.
#[must_use]
pub fn workspace() -> PathBuf {
    let member = Path::new(env!("CARGO_MANIFEST_DIR"));
    member.parent().unwrap_or(member).to_owned()
}

/// Finds a program of the machine, as a shell does.
#[must_use]
pub fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
}
