//! How many descriptors there are to spend.

use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Descriptors for what is not counted: streams, the event queue, inotify, files opened in passing.
const RESERVE: u64 = 64;

/// Where the hard limit is none, memory is spared by one.
const MOST: u64 = 1 << 18;

/// The descriptors that listeners, connections and sessions share. Whoever finds too few waits, or does without,
/// instead of meeting EMFILE.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    descriptors: Arc<Semaphore>,
}

impl Budget {
    /// Raises the soft limit of open files to the hard one, and has what that allows.
    pub(super) fn raise() -> Budget {
        let limit = getrlimit(Resource::Nofile);
        let raised = Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        };
        // Refused, the old limit stays.
        let _ = setrlimit(Resource::Nofile, raised);
        let current = getrlimit(Resource::Nofile)
            .current
            .unwrap_or(MOST)
            .min(MOST);
        let count = usize::try_from(current.saturating_sub(RESERVE)).unwrap_or(usize::MAX);
        Budget {
            descriptors: Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS))),
        }
    }

    /// Waits for `count` descriptors.
    pub(super) async fn wait(&self, count: u32) -> Option<OwnedSemaphorePermit> {
        let descriptors = Arc::clone(&self.descriptors);
        // Never closed, so never refused.
        descriptors.acquire_many_owned(count).await.ok()
    }

    /// Takes `count` descriptors if there are as many.
    pub(super) fn take(&self, count: u32) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.descriptors)
            .try_acquire_many_owned(count)
            .ok()
    }
}
