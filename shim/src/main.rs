//! `qshim`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    qshim::conmon_main()
}
