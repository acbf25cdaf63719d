//! `checkpoint`: saves a container's processes, and ends it.

use anyhow::{Result, bail};

use super::{Request, delete, warn_of_rootless};
use crate::checkpoint::dump::{self, DumpWanted};
use crate::container::{Container, Status};
use crate::failure::During;
use crate::plan::{self, Extra, Plan};
use crate::readiness;
use crate::state;

/// Runs the command.
pub(super) fn checkpoint(request: &Request<'_>) -> Result<u8> {
    warn_of_rootless("checkpoint");
    let id = request.parsed.id();
    let directory = request.store.open(id)?;
    // Nobody is to start, delete or save it in the meantime.
    directory.lock()?;
    if directory.is_removed() {
        return Err(state::Error::NotExist.into());
    }
    let record = directory.read()?;
    let container = Container::new(directory, record);
    let status = container.status();
    if matches!(status, Status::Created | Status::Stopped) {
        bail!(
            "Container cannot be checkpointed in {} state",
            status.name()
        );
    }
    let wanted = DumpWanted::parse(request.parsed)?;
    save(&container, &wanted)?;
    if wanted.leaves_container() {
        return Ok(0);
    }
    if status == Status::Paused {
        // The dead do not leave a frozen cgroup.
        container.cgroup.thaw()?;
    }
    if let Err(error) = delete::destroy(container) {
        log::warn!("{error:#}");
    }
    Ok(0)
}

/// Saves it, with the bundle it was made from, which is read again.
fn save(container: &Container, wanted: &DumpWanted) -> Result<()> {
    let bundle = &container.record.bundle;
    std::env::set_current_dir(bundle).during("chdir", bundle)?;
    let spec = plan::load_spec()?;
    let extra = Extra {
        notify_directory: readiness::bound_directory(container.directory.path()),
        ..Extra::default()
    };
    let plan = Plan::new(&spec, bundle, &container.record.id, extra)?;
    Ok(dump::dump(container, &spec, &plan, wanted)?)
}
