//! What a process that stays takes of the machine, and how often a test does what must not make that more.

use std::path::PathBuf;

use crate::wait::until;

/// How often something is done: `few` times, or with `QSTACK_LOAD=full` as often as `many`.
#[must_use]
pub fn times(few: usize, many: usize) -> usize {
    match std::env::var("QSTACK_LOAD") {
        Ok(load) if load == "full" => many,
        _ => few,
    }
}

/// What a process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Open descriptors.
    pub descriptors: usize,
    /// Memory that it has written to and shares with nobody, in KiB: a page of code that nobody else happens to use
    /// just now is not counted.
    pub private: usize,
}

impl Usage {
    /// Looks at a process.
    ///
    /// # Panics
    /// When there is none of that number.
    #[must_use]
    #[track_caller]
    pub fn of(pid: i32) -> Self {
        let place = PathBuf::from(format!("/proc/{pid}"));
        let descriptors = match std::fs::read_dir(place.join("fd")) {
            Ok(entries) => entries.count(),
            Err(error) => panic!("descriptors of {pid}: {error}"),
        };
        let text = std::fs::read_to_string(place.join("smaps_rollup")).unwrap_or_default();
        let private = text
            .lines()
            .filter(|line| line.starts_with("Private_Dirty:"))
            .filter_map(|line| line.split_whitespace().nth(1)?.parse::<usize>().ok())
            .sum();
        Self {
            descriptors,
            private,
        }
    }

    /// Waits until a process holds no more than this, but for a few pages that come and go.
    ///
    /// # Panics
    /// When it goes on holding more.
    #[track_caller]
    pub fn is_not_exceeded_by(self, pid: i32) {
        const KIB: usize = 64;
        let what = format!(
            "{pid} holds no more than {self:?}, but: {:?}",
            Self::of(pid)
        );
        until(&what, || {
            let now = Self::of(pid);
            let is_no_more =
                now.descriptors <= self.descriptors && now.private <= self.private + KIB;
            is_no_more.then_some(())
        });
    }
}
