//! Where the programs under test are.

use std::path::{Path, PathBuf};
use std::process::Command;

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

/// Compiles a C program of the tests with `compiler`, static, unless that has been done since its source, a path in the
/// work tree, was changed; gives its path.
///
/// # Panics
/// When it cannot be compiled.
#[must_use]
#[track_caller]
pub fn compiled(compiler: &str, source: &str) -> PathBuf {
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _alone = ONE.lock();
    let source = workspace().join(source);
    let directory = target().join("compiled");
    let program = directory.join(source.file_stem().unwrap_or_default());
    let changed = |path: &Path| path.metadata().and_then(|it| it.modified()).ok();
    if changed(&program).is_some_and(|made| Some(made) > changed(&source)) {
        return program;
    }
    // Appears under its name when it is whole: other processes may want it as well.
    let fresh = program.with_extension(std::process::id().to_string());
    let made = std::fs::create_dir_all(&directory);
    let mut command = Command::new(compiler);
    command
        .args(["-O2", "-static", "-Wall", "-Wextra", "-Werror"])
        // Some measure, or try, and leave it at that.
        .args(["-Wno-unused-result", "-o"])
        .arg(&fresh)
        .arg(&source);
    crate::command::run(&mut command).ok();
    if let Err(error) = made.and_then(|()| std::fs::rename(&fresh, &program)) {
        panic!("make {}: {error}", program.display());
    }
    program
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
