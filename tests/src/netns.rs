//! Network namespaces: one for the test itself, so that bridges and ports of tests that run at the
//! same time never meet, and others joined to it by veth that play another machine.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};

use nix::sched::{CloneFlags, setns, unshare};

use crate::command::{shell, tool};

/// Moves the calling thread, and all it starts from now on, into a new network namespace with
/// loopback up.
///
/// # Panics
/// When the kernel refuses.
pub fn isolate() {
    if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
        panic!("unshare the network namespace: {error}");
    }
    shell("ip link set lo up");
}

/// Another machine: a network namespace at the far end of a veth pair.
#[derive(Debug)]
pub struct Neighbour {
    namespace: File,
    link: String,
}

impl Neighbour {
    /// The near end's address: the host's own address, as the neighbour knows it.
    pub const HOST: &str = "192.168.231.1";
    /// The neighbour's address.
    pub const ADDRESS: &str = "192.168.231.2";

    /// Makes a machine that shares a link with the calling thread's network namespace.
    ///
    /// # Panics
    /// When a link of that name is there already, or the kernel refuses.
    #[must_use]
    pub fn new() -> Self {
        let made = std::thread::spawn(|| {
            isolate();
            File::open("/proc/thread-self/ns/net")
        });
        let namespace = match made.join() {
            Ok(Ok(namespace)) => namespace,
            _ => panic!("make a network namespace"),
        };
        let link = format!("qt{}", std::process::id());
        let there = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
        shell(&format!(
            "ip link add {link} type veth peer name far netns {there}"
        ));
        let neighbour = Self { namespace, link };
        shell(&format!(
            "ip addr add {}/30 dev {}",
            Self::HOST,
            neighbour.link
        ));
        shell(&format!("ip link set {} up", neighbour.link));
        neighbour.visit(|| {
            shell(&format!("ip addr add {}/30 dev far", Self::ADDRESS));
            shell("ip link set far up");
            shell(&format!("ip route add default via {}", Self::HOST));
        });
        neighbour
    }

    /// Does something on the other machine.
    ///
    /// # Panics
    /// When `deed` does.
    pub fn visit<T: Send>(&self, deed: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let there = scope.spawn(|| {
                if let Err(error) = setns(self.namespace.as_fd(), CloneFlags::CLONE_NEWNET) {
                    panic!("enter the neighbour's network namespace: {error}");
                }
                deed()
            });
            match there.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

impl Default for Neighbour {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            tool("ip", &["link", "del", &self.link]);
            return;
        }
        let _ = std::process::Command::new("ip")
            .args(["link", "del", &self.link])
            .status();
    }
}
