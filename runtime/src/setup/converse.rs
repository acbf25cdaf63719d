//! The parent's side of the conversation, from the moment the process is in its cgroup until it is ready.

use std::os::fd::AsFd;

use rustix::process::Pid;

use super::handshake::{FromInit, ParentEnd, ToInit};
use super::parent::Prepared;
use super::{Error, outside, source};
use crate::failure::During;
use crate::hook::{self, Point};
use crate::namespace::Kind;
use crate::plan::Plan;
use crate::rootfs::mount::source::{Form, Source};
use crate::state::Record;
use crate::sys::process::Child;
use crate::told;

/// Runs hooks and passes descriptors on until the process is ready.
pub(super) fn converse(
    plan: &Plan,
    prepared: &Prepared,
    record: &Record,
    channel: &ParentEnd,
    child: &Child,
) -> Result<(), Error> {
    loop {
        match channel.receive().during("recvmsg", "init")? {
            Some(FromInit::Ready) => {
                told::init_is_ready();
                return Ok(());
            }
            Some(FromInit::OpenSource(index, form)) => {
                let source = open_source(plan, prepared, record, (index, form))?;
                channel
                    .send(&ToInit::Source(source))
                    .during("sendmsg", "init")?;
            }
            Some(FromInit::RunHooks) => {
                hook::run(
                    Point::Prestart,
                    &prepared.hooks.prestart,
                    record,
                    Some(record.pid),
                )?;
                hook::run(
                    Point::CreateRuntime,
                    &prepared.hooks.create_runtime,
                    record,
                    Some(record.pid),
                )?;
                channel.send(&ToInit::HooksDone).during("sendmsg", "init")?;
            }
            Some(FromInit::Listener(listener)) => {
                outside::pass_listener(&listener, record, channel, child)?;
            }
            Some(FromInit::ListenerAt(number)) => {
                outside::pass_listener(&outside::fetch(number, child)?, record, channel, child)?;
            }
            Some(FromInit::Failed(fault)) => return Err(Error::Init(fault)),
            Some(FromInit::Forked(_)) => return Err(Error::Protocol),
            None => return Err(Error::Died),
        }
    }
}

/// Opens the source of a mount for the process.
fn open_source(
    plan: &Plan,
    prepared: &Prepared,
    record: &Record,
    (index, form): (usize, Form),
) -> Result<Source, Error> {
    let step = plan.root.mounts.get(index).ok_or(Error::Protocol)?;
    let pid = Pid::from_raw(record.pid).ok_or(Error::Protocol)?;
    let mut joins = prepared.joins.iter();
    let joined = joins.find(|(kind, _)| *kind == Kind::User);
    let joined = joined.map(|(_, fd)| fd.as_fd());
    source::open_inside(pid, (step, form), prepared.users.of(index), joined)
}
