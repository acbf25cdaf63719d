//! Processes of the engine's own that stay when the command that needed them has ended.

use std::fs::OpenOptions;
use std::io::Write as _;

/// Leaves the session and the cgroup of whoever started this process: what is typed in the one, and the end of the
/// service that has the other, are meant for them. For a process with one thread, before anybody hears that it serves.
pub(super) fn leave_caller() {
    // Fails for the leader of a process group, which nobody has made us, and for one of a session, which needs none.
    let _ = rustix::process::setsid();
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    for file in own.lines().flat_map(ways_out) {
        // Where it is not allowed, in a container say, or not there, this process stays.
        let _ = OpenOptions::new()
            .write(true)
            .open(file)
            .and_then(|mut file| file.write_all(b"0"));
    }
}

/// The files that lead from a cgroup, as a line of `/proc/PID/cgroup` tells it (cgroups(7)), to the root of its hierarchy.
/// None leads away from the root, for moving waits for the kernel, and none out of v1's controllers, which end nobody.
fn ways_out(line: &str) -> &'static [&'static str] {
    match line.split_once(':') {
        Some((_, rest)) if rest.ends_with(":/") => &[],
        // cgroup v2, alone or beside v1.
        Some((_, rest)) if rest.starts_with(':') => &[
            "/sys/fs/cgroup/cgroup.procs",
            "/sys/fs/cgroup/unified/cgroup.procs",
        ],
        // What systemd goes by on v1.
        Some((_, rest)) if rest.starts_with("name=systemd:") => &["/sys/fs/cgroup/systemd/tasks"],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_lead_out_of_what_services_have() {
        for (line, count) in [
            ("0::/user.slice/session-1.scope", 2),
            ("1:name=systemd:/system.slice/a:b.service", 1),
            ("0::/", 0),
            ("1:name=systemd:/", 0),
            ("4:memory:/system.slice", 0),
            ("", 0),
        ] {
            assert_eq!(ways_out(line).len(), count, "{line}");
        }
    }
}
