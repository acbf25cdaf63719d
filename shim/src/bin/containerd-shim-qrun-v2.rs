//! `containerd-shim-qrun-v2`: see the library, `frontend/containerd`.

use std::process::ExitCode;

fn main() -> ExitCode {
    qshim::containerd_main()
}
