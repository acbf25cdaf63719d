//! System calls that older kernels lack, and that a runtime has to do without there.

use nix::libc::{
    SYS_clone3, SYS_close_range, SYS_faccessat2, SYS_fsopen, SYS_mount_setattr, SYS_move_mount,
    SYS_open_tree, SYS_openat2, SYS_pidfd_open, SYS_pidfd_send_signal,
};

/// Names and numbers, with the newest first that a kernel may be without.
pub const NUMBERS: [(&str, i64); 10] = [
    // Linux 5.12
    ("mount_setattr", SYS_mount_setattr),
    // Linux 5.9
    ("close_range", SYS_close_range),
    // Linux 5.8
    ("faccessat2", SYS_faccessat2),
    // Linux 5.6
    ("openat2", SYS_openat2),
    // Linux 5.3
    ("clone3", SYS_clone3),
    ("pidfd_open", SYS_pidfd_open),
    // Linux 5.2
    ("fsopen", SYS_fsopen),
    ("open_tree", SYS_open_tree),
    ("move_mount", SYS_move_mount),
    // Linux 5.1
    ("pidfd_send_signal", SYS_pidfd_send_signal),
];
