//! What exists of a container that is being made, and how it is taken back when something fails.

use super::handshake::ParentEnd;
use super::spawn;
use crate::cgroup::Cgroup;
use crate::hook::{self, Point};
use crate::network_device::Moved;
use crate::resctrl;
use crate::rootfs::Uncovered;
use crate::state::{Directory, Record};
use crate::sys::process::Child;

/// What exists so far, to be undone when something fails.
pub(crate) struct Made {
    pub(crate) directory: Directory,
    pub(crate) cgroup: Option<Cgroup>,
    pub(crate) resctrl: Option<resctrl::Record>,
    pub(crate) child: Option<Child>,
    pub(super) channel: Option<ParentEnd>,
    pub(super) devices: Option<Moved>,
    /// Where the root covers something in this mount namespace.
    pub(super) root: Option<Uncovered>,
    /// For the poststop hooks, if there are any; from the moment the child exists.
    pub(super) record: Option<Record>,
}

impl Made {
    /// A state directory and nothing else yet.
    pub(crate) fn of(directory: Directory) -> Self {
        Self {
            directory,
            cgroup: None,
            resctrl: None,
            child: None,
            channel: None,
            devices: None,
            root: None,
            record: None,
        }
    }

    /// Takes everything back. Failures are logged: the one that led here is what the user is told.
    pub(crate) fn undo(self) {
        // Before the process ends, and the devices with its namespace.
        if let Some(devices) = self.devices {
            devices.undo();
        }
        if let Some(child) = &self.child {
            spawn::end(child);
        }
        if let Some(Err(errno)) = self.root.map(|root| root.uncover()) {
            log::warn!("cannot unmount the root: {}", crate::failure::text(errno));
        }
        if let Some(cgroup) = self.cgroup.filter(|cgroup| !cgroup.is_unconfigured()) {
            // Hooks may have left something there.
            let removed = cgroup
                .kill_all(rustix::process::Signal::KILL)
                .and_then(|()| cgroup.remove());
            if let Err(error) = removed {
                log::warn!(
                    "cannot remove the cgroup: {}",
                    crate::failure::chain(&error)
                );
            }
        }
        if let Some(Err(error)) = self.resctrl.map(|group| group.remove()) {
            log::warn!("cannot remove the resctrl group: {error}");
        }
        // A create that fails ends like a container: runtime.md "Lifecycle", steps 3 to 13.
        if let Some(record) = &self.record {
            let hooks = record.hooks.iter().flat_map(|hooks| &hooks.poststop);
            let hooks: Vec<_> = hooks.cloned().collect();
            hook::run_all(Point::Poststop, &hooks, record, None);
        }
        if let Err(error) = self.directory.remove() {
            log::warn!("cannot remove the state directory: {error}");
        }
    }
}
