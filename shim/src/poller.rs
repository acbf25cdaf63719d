//! epoll, with names for what is watched.

use std::cell::Cell;
use std::marker::PhantomData;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::{Errno, Result};

use crate::memory::release_code;

/// What an event is about: the names of one loop.
pub(crate) trait Name: Copy {
    /// The number that the kernel keeps with it.
    fn number(self) -> u64;

    /// The name of a number.
    fn from_number(number: u64) -> Option<Self>;
}

/// Most events taken in one turn.
const BATCH: usize = 32;

/// What one turn of the loop brought.
pub(crate) struct Batch {
    events: [Event; BATCH],
    count: usize,
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Batch")
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

impl Batch {
    /// Room for one turn.
    pub(crate) fn new() -> Self {
        let empty = Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(u64::MAX),
        };
        Self {
            events: [empty; BATCH],
            count: 0,
        }
    }

    /// The events, by the names of the poller that filled it.
    pub(crate) fn named<N: Name>(&self) -> impl Iterator<Item = (N, EventFlags)> {
        let events = self.events.iter().take(self.count);
        events.filter_map(|event| {
            let (data, flags) = (event.data, event.flags);
            Some((N::from_number(data.u64())?, flags))
        })
    }

    /// Whether there may be more events than fitted.
    pub(crate) fn is_full(&self) -> bool {
        self.count == BATCH
    }
}

/// How long nothing has to happen until a process counts as idle.
const SETTLED: Duration = Duration::from_secs(1);

/// An epoll instance.
#[derive(Debug)]
pub(crate) struct Poller<N> {
    epoll: OwnedFd,
    /// Whether there was an event since the code was taken out of memory.
    busy: Cell<bool>,
    name: PhantomData<N>,
}

impl<N: Name> Poller<N> {
    /// Makes the epoll instance.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            busy: Cell::new(true),
            name: PhantomData,
        })
    }

    /// Watches `fd` for `flags`, level-triggered.
    pub(crate) fn add(&self, fd: impl AsFd, name: N, flags: EventFlags) -> Result<()> {
        epoll::add(&self.epoll, fd, EventData::new_u64(name.number()), flags)
    }

    /// Changes what `fd` is watched for.
    pub(crate) fn modify(&self, fd: impl AsFd, name: N, flags: EventFlags) -> Result<()> {
        epoll::modify(&self.epoll, fd, EventData::new_u64(name.number()), flags)
    }

    /// Stops watching `fd`.
    pub(crate) fn remove(&self, fd: impl AsFd) -> Result<()> {
        epoll::delete(&self.epoll, fd)
    }

    /// Waits for events, at most for `timeout`. When there are none for a second, `settle` is called once, to give back what is
    /// not needed until the next: a process may wait for months, and takes no more memory meanwhile than waiting does.
    pub(crate) fn wait(
        &self,
        batch: &mut Batch,
        timeout: Option<Duration>,
        settle: impl FnOnce(),
    ) -> Result<()> {
        let mut left = timeout;
        if self.busy.get() && timeout.is_none_or(|timeout| timeout > SETTLED) {
            self.wait_for(batch, Some(SETTLED))?;
            if batch.count > 0 {
                return Ok(());
            }
            settle();
            // After that, which is code as well.
            release_code();
            self.busy.set(false);
            left = timeout.map(|timeout| timeout.saturating_sub(SETTLED));
        }
        self.wait_for(batch, left)?;
        self.busy.set(true);
        Ok(())
    }

    fn wait_for(&self, batch: &mut Batch, timeout: Option<Duration>) -> Result<()> {
        let timeout = timeout.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs().min(1_000_000)).unwrap_or(1_000_000),
            // Rounded up to a millisecond, because older kernels count in
            // those and a remainder would make the loop spin through it.
            tv_nsec: (i64::from(left.subsec_nanos()) + 999_999).min(999_999_999),
        });
        batch.count = 0;
        match epoll::wait(&self.epoll, &mut batch.events[..], timeout.as_ref()) {
            Ok(count) => {
                batch.count = count;
                Ok(())
            }
            Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}
