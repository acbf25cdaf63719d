//! Where the other programs are.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The programs that the engine starts. They are looked for beside the engine first, so that a build is used as a
/// whole, then in `PATH`.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The engine itself, for the monitor's exit command.
    pub engine: PathBuf,
    /// The monitor.
    pub shim: PathBuf,
    /// The runtime.
    pub runtime: PathBuf,
    /// `--root` and `--run-root`, which the exit command has to repeat.
    pub engine_arguments: Vec<OsString>,
}

impl Programs {
    /// Finds them. `QENGINE_SHIM` and `QENGINE_RUNTIME` in the environment win. A program that is nowhere keeps its
    /// bare name: the attempt to run it then gives the error that says so.
    #[must_use]
    pub fn locate(engine_arguments: Vec<OsString>) -> Programs {
        let engine = env::current_exe().unwrap_or_else(|_| PathBuf::from("qengine"));
        let find = |variable: &str, name: &str| {
            env::var_os(variable)
                .map(PathBuf::from)
                .unwrap_or_else(|| beside_or_in_path(&engine, name))
        };
        Programs {
            shim: find("QENGINE_SHIM", "qshim"),
            runtime: find("QENGINE_RUNTIME", "qrun"),
            engine,
            engine_arguments,
        }
    }
}

fn beside_or_in_path(engine: &Path, name: &str) -> PathBuf {
    let beside = engine.with_file_name(name);
    if beside.is_file() {
        return beside;
    }
    env::var_os("PATH")
        .and_then(|path| {
            env::split_paths(&path)
                .map(|directory| directory.join(name))
                .find(|candidate| candidate.is_file())
        })
        .unwrap_or_else(|| PathBuf::from(name))
}
