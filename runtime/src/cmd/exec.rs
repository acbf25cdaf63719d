//! `exec`: another process in a running container.

use std::fs;

use anyhow::{Context as _, Result, bail};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::{Request, launch};
use crate::cgroup::{Cgroup, Record};
use crate::cli::Parsed;
use crate::container::{Container, Status};
use crate::failure::During;
use crate::plan;
use crate::rootless;
use crate::self_image;
use crate::setup::join;
use crate::spec::Spec;
use crate::spec::process::{Capabilities, Process};
use crate::supervise::{Foreground, Terminal};

/// Runs the command.
pub(super) fn exec(request: &Request<'_>) -> Result<u8> {
    let parsed = request.parsed;
    self_image::protect()?;
    let keep_fds = parsed.number("preserve-fds")?.unwrap_or(0);
    launch::check_inherited(keep_fds)?;
    let container = Container::load(&request.store, parsed.id())?;
    match container.status() {
        Status::Stopped => bail!("cannot exec in a stopped container"),
        Status::Paused if !parsed.is_on("ignore-paused") => {
            bail!("cannot exec in a paused container (use --ignore-paused to override)");
        }
        _ => {}
    }
    let process = process(parsed, &container)?;
    let process = plan::exec_process(&process, rootless::is_other_user())?;
    let cgroup = own_cgroup(parsed, &container)?;
    let detach = parsed.is_on("detach");
    let outside = launch::console_socket(parsed, process.terminal, detach)?;
    let own = match process.terminal && !detach {
        true => Some(
            socketpair(
                AddressFamily::UNIX,
                SocketType::STREAM,
                SocketFlags::CLOEXEC,
                None,
            )
            .during("socketpair", "terminal")?,
        ),
        false => None,
    };
    let foreground = if detach {
        None
    } else {
        Some(Foreground::begin()?)
    };
    let wanted = join::Request {
        container: &container,
        process: &process,
        cgroup: cgroup.as_ref(),
        console_socket: outside.as_ref().or(own.as_ref().map(|(_, inside)| inside)),
        keyring: true,
        keep_fds,
        report: launch::report(parsed),
    };
    let child = join::join(&wanted).context("unable to start container process")?;
    let Some(foreground) = foreground else {
        return Ok(0);
    };
    let terminal = own
        .map(|(outside, _)| launch::receive_terminal(&outside))
        .transpose()?;
    let terminal = terminal.map(Terminal::new).transpose()?;
    Ok(foreground.wait_for(&child, terminal.as_ref(), None)?)
}

/// The spec of the container's bundle.
fn bundle_spec(container: &Container) -> Result<Spec> {
    let path = container.record.bundle.join("config.json");
    let text = fs::read(&path).during("open", &path)?;
    serde_json::from_slice(&text).with_context(|| format!("cannot parse {}", path.display()))
}

/// The process: from a file, or the container's own with other arguments and what the options change.
fn process(parsed: &Parsed, container: &Container) -> Result<Process> {
    match parsed.path("process") {
        Some(path) => {
            let text = fs::read(&path).during("open", &path)?;
            serde_json::from_slice(&text)
                .with_context(|| format!("cannot parse {}", path.display()))
        }
        None => changed_process(parsed, bundle_spec(container)?.process.unwrap_or_default()),
    }
}

/// The container's own process with other arguments and what the options change.
fn changed_process(parsed: &Parsed, mut process: Process) -> Result<Process> {
    process.args = parsed.arguments[1..].to_vec();
    if process.args.is_empty() {
        bail!("process args cannot be empty");
    }
    process.terminal = parsed.is_on("tty");
    if let Some(cwd) = parsed.value("cwd").filter(|cwd| !cwd.is_empty()) {
        process.cwd = cwd.to_owned();
    }
    if let Some(profile) = parsed
        .value("apparmor")
        .filter(|profile| !profile.is_empty())
    {
        process.apparmor_profile = profile.to_owned();
    }
    if let Some(label) = parsed
        .value("process-label")
        .filter(|label| !label.is_empty())
    {
        process.selinux_label = label.to_owned();
    }
    if parsed.value("no-new-privs").is_some() {
        process.no_new_privileges = parsed.is_on("no-new-privs");
    }
    process.env.extend(parsed.values("env").map(str::to_owned));
    add_capabilities(&mut process, parsed);
    set_user(&mut process, parsed)?;
    Ok(process)
}

/// `--cap`: in every set but the inheritable one; ambient only where inheritable ones exist, as they go together.
fn add_capabilities(process: &mut Process, parsed: &Parsed) {
    for capability in parsed.values("cap") {
        let sets = process
            .capabilities
            .get_or_insert_with(Capabilities::default);
        let ambient = !sets.inheritable.is_empty();
        for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted] {
            set.push(capability.to_owned());
        }
        if ambient {
            sets.ambient.push(capability.to_owned());
        }
    }
}

/// `--user UID[:GID]` and `--additional-gids`.
fn set_user(process: &mut Process, parsed: &Parsed) -> Result<()> {
    if let Some(user) = parsed.value("user").filter(|user| !user.is_empty()) {
        let (uid, gid) = match user.split_once(':') {
            Some((uid, gid)) => (uid, Some(gid)),
            None => (user, None),
        };
        process.user.uid = uid
            .parse()
            .with_context(|| format!("parsing {uid} as int for uid failed"))?;
        if let Some(gid) = gid {
            process.user.gid = gid
                .parse()
                .with_context(|| format!("parsing {gid} as int for gid failed"))?;
        }
    }
    for gid in parsed.values("additional-gids") {
        let gid = gid
            .parse()
            .with_context(|| format!("parsing {gid} as int for gid failed"))?;
        process.user.additional_gids.push(gid);
    }
    Ok(())
}

/// `--cgroup [CONTROLLER[,…]:]PATH`: a child cgroup below the container's own.
fn own_cgroup(parsed: &Parsed, container: &Container) -> Result<Option<Cgroup>> {
    let mut record: Option<Record> = None;
    for value in parsed.values("cgroup") {
        let (controllers, path) = match value.split_once(':') {
            Some((controllers, path)) => (Some(controllers), path),
            None => (None, value),
        };
        let path = path.trim_start_matches('/');
        if path.split('/').any(|component| component == "..") {
            bail!("bad --cgroup {value:?}: it leads out of the container's cgroup");
        }
        let record = record.get_or_insert_with(|| container.record.cgroup.clone());
        let Some(controllers) = controllers else {
            for directory in record.paths.values_mut() {
                *directory = directory.join(path);
            }
            continue;
        };
        for controller in controllers.split(',') {
            let Some(directory) = record.paths.get_mut(controller) else {
                bail!("unknown controller {controller} in --cgroup {value}");
            };
            *directory = directory.join(path);
        }
    }
    Ok(record.map(|record| Cgroup::open(&record)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli;

    fn built(line: &str) -> Result<Process> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let parsed = cli::parse_command(cli::command("exec").unwrap(), &words).unwrap();
        let spec: Spec = serde_json::from_str(
            r#"{"process":{"args":["init"],"cwd":"/","env":["A=1"],"terminal":true,"noNewPrivileges":true,
                "capabilities":{"bounding":["CAP_KILL"]}},"linux":{}}"#,
        )
        .unwrap();
        changed_process(&parsed, spec.process.unwrap())
    }

    #[test]
    fn options_change_the_containers_process() {
        let process =
            built("-e B=2 --user 5:6 -g 7 -g 8 --cwd /tmp -c CAP_CHOWN c1 ls -l").unwrap();
        assert_eq!(process.args, ["ls", "-l"]);
        assert_eq!(process.env, ["A=1", "B=2"]);
        assert_eq!((process.user.uid, process.user.gid), (5, 6));
        assert_eq!(process.user.additional_gids, [7, 8]);
        assert_eq!(process.cwd, "/tmp");
        assert!(!process.terminal && process.no_new_privileges);
        let capabilities = process.capabilities.unwrap();
        assert_eq!(capabilities.bounding, ["CAP_KILL", "CAP_CHOWN"]);
        assert!(capabilities.inheritable.is_empty() && capabilities.ambient.is_empty());
    }

    #[test]
    fn bad_values_are_named() {
        assert_eq!(
            built("c1").unwrap_err().to_string(),
            "process args cannot be empty"
        );
        assert!(built("--user root c1 sh").is_err());
    }
}
