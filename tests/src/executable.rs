//! Programs that a test makes and starts.
//!
//! A file that somebody has open for writing cannot be executed (`ETXTBSY`, execve(2)). Tests run side by side in one
//! process: whatever one of them starts while another writes a program holds that descriptor, too, until its own
//! execve. So processes that start nothing write the programs.

use std::path::Path;
use std::process::Command;

use crate::command::run_with_input;

/// Makes the script `path`, executable for everybody.
///
/// # Panics
/// When it cannot be written.
#[track_caller]
pub fn script(path: &Path, text: &str) {
    let mut shell = Command::new("sh");
    shell.args(["-c", "umask 022; cat >\"$0\" && chmod 755 \"$0\""]);
    run_with_input(shell.arg(path), text.as_bytes()).ok();
}

/// Copies the program `from` to `to`, with its mode.
///
/// # Panics
/// When it cannot be copied.
#[track_caller]
pub fn copy(from: &Path, to: &Path) {
    let mut copying = Command::new("cp");
    run_with_input(copying.arg("--preserve=mode").args([from, to]), &[]).ok();
}

/// Unpacks a tar archive that has programs in it under the directory `root`, with its modes.
///
/// # Panics
/// When it cannot be unpacked.
#[track_caller]
pub fn unpack(archive: &[u8], root: &Path) {
    let mut tar = Command::new("tar");
    tar.args(["-x", "--same-permissions", "--same-owner", "-C"]);
    run_with_input(tar.arg(root), archive).ok();
}
