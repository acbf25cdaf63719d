//! Makes crun run on hybrid cgroup hosts, for the time of a comparison.

use std::path::Path;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use stack_tests::wait;

const CONTROL: &str = "/sys/fs/cgroup/unified/cgroup.subtree_control";
const CONTROLLERS: &str = "/sys/fs/cgroup/unified/cgroup.controllers";
const MOUNT: &str = "/sys/fs/cgroup/hugetlb";

/// The hugetlb controller on a v1 hierarchy: crun refuses to work while one sits on v2 beside v1
/// hierarchies. Back on v2 when dropped.
pub(crate) struct Hugetlb(bool);

impl Hugetlb {
    /// Moves the controller, where it sits on v2 of a hybrid host, inside a mount namespace of this
    /// process's own.
    pub(crate) fn as_v1() -> Self {
        let controllers = std::fs::read_to_string(CONTROLLERS).unwrap_or_default();
        if controllers.trim() != "hugetlb" || Path::new(MOUNT).exists() {
            return Self(false);
        }
        let moved = (|| -> anyhow::Result<()> {
            unshare(CloneFlags::CLONE_NEWNS)?;
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
            std::fs::write(CONTROL, "-hugetlb")?;
            std::fs::create_dir(MOUNT)?;
            mount(
                Some("cgroup"),
                MOUNT,
                Some("cgroup"),
                MsFlags::empty(),
                Some("hugetlb"),
            )?;
            Ok(())
        })();
        let this = Self(true);
        if let Err(error) = moved {
            eprintln!("crun will not run on this hybrid host: {error:#}");
        }
        this
    }
}

impl Drop for Hugetlb {
    fn drop(&mut self) {
        if !self.0 {
            return;
        }
        let _ = umount2(MOUNT, MntFlags::empty());
        // The hierarchy goes away some time after the last cgroup in it is freed, and only an
        // unmount after that ends it.
        let back = wait::within(Duration::from_secs(90), || {
            let on_v2 =
                std::fs::read_to_string(CONTROLLERS).is_ok_and(|all| all.contains("hugetlb"));
            if !on_v2 {
                std::thread::sleep(Duration::from_secs(1));
                let _ = mount(
                    Some("cgroup"),
                    MOUNT,
                    Some("cgroup"),
                    MsFlags::empty(),
                    Some("hugetlb"),
                );
                let _ = umount2(MOUNT, MntFlags::empty());
            }
            on_v2
                .then(|| std::fs::write(CONTROL, "+hugetlb"))
                .and_then(Result::ok)
        });
        let _ = std::fs::remove_dir(MOUNT);
        if back.is_none() {
            eprintln!("the hugetlb controller is not back on cgroup v2 yet; it returns by itself");
        }
    }
}
