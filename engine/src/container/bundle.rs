//! The bundle of a container: the image's configuration and the user's options become `config.json`.
//!
//! The bundle is the container's directory below `<run>`; its `root.path` is the merged overlay. What the image says is converted by
//! [`bundle_tools::generate`]; here the options are laid over it, one function a subject.

use std::path::Path;

use bundle_tools::generate::{self, Overrides};
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Mount, Spec};

use super::find::Handle;
use super::model::{CgroupNamespace, Options, Sharing, Status};
use super::{Error, Programs, Result, files};
use crate::network::Mode;
use crate::store::{self, Durability, Store};

mod chown;
mod limits;
mod mounts;
mod seccomp;
mod security;
mod volumes;

/// Where the init of `--init` is.
const INIT: &str = "/dev/init";

pub(super) use limits::changed as changed_limits;
pub(super) use mounts::{MADE_FILES, shm};
pub(super) use security::every_capability;
use volumes::Pins;
pub(super) use volumes::remove_pins;

/// Writes `config.json` for a start. The root file system is mounted already: user names are looked up in it.
///
/// What the answer holds must live until the runtime has created the container.
pub(super) fn write(store: &Store, programs: &Programs, handle: &Handle) -> Result<Pins> {
    let (spec, pins) = generate(store, programs, handle)?;
    let path = handle.bundle(store).join("config.json");
    let json = generate::to_json(&spec).map_err(|source| store::Error::Damaged {
        path: path.clone(),
        source,
    })?;
    store::write_atomic(&path, &json, Durability::Volatile)?;
    Ok(pins)
}

fn generate(store: &Store, programs: &Programs, handle: &Handle) -> Result<(Spec, Pins)> {
    let config = &handle.config;
    let options = &config.options;
    let hostname = files::hostname(handle);
    let arguments = if options.init {
        let own = [INIT.to_owned(), "--".to_owned()];
        own.into_iter().chain(config.args.iter().cloned()).collect()
    } else {
        config.args.clone()
    };
    let mut env = vec![format!("HOSTNAME={hostname}")];
    env.extend(options.env.iter().cloned());
    let overrides = Overrides {
        entrypoint: Some(arguments),
        cmd: Some(Vec::new()),
        env,
        cwd: options.workdir.clone(),
        user: options.user.clone(),
        groups: options.group_add.clone(),
        terminal: options.tty,
        hostname: (!options.uts_host && options.network != Mode::Host).then(|| hostname.clone()),
        root_path: Some(handle.merged()),
        readonly: options.read_only,
        capabilities: Some(security::capabilities(options)?),
        seccomp: security::wants_default_seccomp(options),
        volumes: false,
        rootless: false,
    };
    let mut spec = generate::from_image(&config.image_config, &handle.merged(), &overrides)?;
    spec.set_domainname(options.domainname.clone());
    namespaces(store, options, &mut spec)?;
    let pins = mounts::apply(store, handle, &mut spec)?;
    if options.init {
        add_init(programs, &mut spec)?;
    }
    limits::apply(options, &mut spec)?;
    security::apply(options, &mut spec)?;
    if !options.annotations.is_empty() {
        let annotations = spec.annotations_mut().get_or_insert_default();
        annotations.extend(options.annotations.clone());
    }
    if let Some(linux) = spec.linux_mut() {
        let parent = options.cgroup_parent.as_deref();
        linux.set_cgroups_path(Some(cgroup_path(&config.id, parent).into()));
    }
    Ok((spec, pins))
}

/// The monitor's program, which is an init under this name. `/dev` is never the image's, and the bind is read-only:
/// `/proc/1/exe` does not lead to a file that could be written (CVE-2019-5736).
fn add_init(programs: &Programs, spec: &mut Spec) -> Result<()> {
    let program = std::fs::canonicalize(&programs.shim).map_err(|source| Error::Program {
        program: programs.shim.clone(),
        source,
    })?;
    let options = ["bind", "ro", "nosuid", "nodev", "rprivate"];
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    mounts.push(bind(&program, INIT, &options));
    spec.set_mounts(Some(mounts));
    Ok(())
}

/// Whether the options can be meant: what would otherwise be refused at the start.
///
/// # Errors
/// [`Error::Invalid`] with the option and what is wrong with it.
pub fn check(options: &Options) -> Result<()> {
    limits::check(options)?;
    mounts::check(options)?;
    security::check(options)
}

/// Directly below the root of each hierarchy, so that nothing but the container's own cgroup has to be made, and
/// nothing is left when it goes.
pub(super) fn cgroup_path(id: &str, parent: Option<&str>) -> String {
    match parent {
        Some(parent) => format!("/{}/qengine-{id}", parent.trim_matches('/')),
        None => format!("/qengine-{id}"),
    }
}

fn namespaces(store: &Store, options: &Options, spec: &mut Spec) -> Result<()> {
    let mut joined = Vec::new();
    let others = [
        (LinuxNamespaceType::Pid, "pid", &options.pid),
        (LinuxNamespaceType::Ipc, "ipc", &options.ipc),
    ];
    for (kind, name, sharing) in others {
        if let Sharing::Container(id) = sharing {
            joined.push((kind, namespace_of(store, id, name)?));
        }
    }
    if let Mode::Container(id) = &options.network {
        joined.push((LinuxNamespaceType::Network, namespace_of(store, id, "net")?));
    }
    let Some(namespaces) = spec
        .linux_mut()
        .as_mut()
        .and_then(|linux| linux.namespaces_mut().as_mut())
    else {
        return Ok(());
    };
    let cgroup = options.cgroup_namespace;
    namespaces.retain(|namespace| match namespace.typ() {
        LinuxNamespaceType::Network => options.network != Mode::Host,
        LinuxNamespaceType::Pid => options.pid != Sharing::Host,
        LinuxNamespaceType::Ipc => options.ipc != Sharing::Host,
        LinuxNamespaceType::Cgroup => cgroup != Some(CgroupNamespace::Host),
        // The host's network comes with the host's name, as docker has it.
        LinuxNamespaceType::Uts => !options.uts_host && options.network != Mode::Host,
        _ => true,
    });
    let has_cgroup = namespaces
        .iter()
        .any(|namespace| namespace.typ() == LinuxNamespaceType::Cgroup);
    if cgroup == Some(CgroupNamespace::Private) && !has_cgroup {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(LinuxNamespaceType::Cgroup);
        namespaces.push(namespace);
    }
    for (kind, path) in joined {
        for namespace in namespaces.iter_mut() {
            if namespace.typ() == kind {
                namespace.set_path(Some(path.clone().into()));
            }
        }
    }
    Ok(())
}

/// A namespace of a running container.
fn namespace_of(store: &Store, id: &str, name: &str) -> Result<String> {
    let other = Handle::find(store, id)?;
    let (state, live) = other.live(store)?;
    if name == "ipc" && matches!(other.config.options.ipc, Sharing::Own | Sharing::Closed) {
        return Err(Error::Invalid(format!(
            "cannot join the ipc namespace of container {}: it was not made with --ipc shareable",
            other.name()
        )));
    }
    match (state.status, state.process) {
        (Status::Running, Some(process)) if live.is_running() => {
            Ok(format!("/proc/{}/ns/{name}", process.pid))
        }
        _ => Err(Error::WrongStatus {
            id: other.name().to_owned(),
            status: live.word().to_owned(),
            action: match name {
                "net" => "join its network",
                "pid" => "join its pid namespace",
                _ => "join its ipc namespace",
            },
        }),
    }
}

fn bind(source: &Path, destination: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(destination.into())
        .set_typ(Some("bind".to_owned()))
        .set_source(Some(source.to_owned()))
        .set_options(Some(
            options.iter().map(|&option| option.to_owned()).collect(),
        ));
    mount
}
