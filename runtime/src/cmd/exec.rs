//! `exec`: another process in a running container.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Request, launch};
use crate::cgroup::{Cgroup, Record};
use crate::cli::{Parsed, value};
use crate::container::{Container, Status};
use crate::failure::During;
use crate::plan;
use crate::rootless;
use crate::self_image;
use crate::setup::{join, spawn};
use crate::spec::process::{Capabilities, Process};

/// How long another command may be at work on the container.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the command.
pub(super) fn exec(request: &Request<'_>) -> Result<u8> {
    let parsed = request.parsed;
    self_image::protect()?;
    let keep_fds = parsed.number("preserve-fds")?.unwrap_or(0);
    launch::check_inherited(keep_fds)?;
    let container = load(request)?;
    match container.status() {
        Status::Stopped => bail!("cannot exec in a stopped container"),
        Status::Paused if !parsed.is_on("ignore-paused") => {
            bail!("cannot exec in a paused container (use --ignore-paused to override)");
        }
        _ => {}
    }
    let process = process(parsed, &container)?;
    if rootless::is_other_user() {
        plan::rootless::check_groups(&process)?;
    }
    let mut process = container.record.inherited.plan(process)?;
    process.keep_groups = crate::rootless::keeps_groups(&container.record.annotations);
    let cgroup = own_cgroup(parsed, &container)?;
    let detach = parsed.is_on("detach");
    let socket = parsed.path("console-socket");
    let front = launch::Front::new(socket.as_deref(), process.terminal, detach)?;
    let wanted = join::Request {
        container: &container,
        process: &process,
        cgroup: cgroup.as_ref(),
        holder: front.holder(),
        keep_fds,
        report: launch::report(parsed),
    };
    let child = join::join(&wanted).context("unable to start container process")?;
    let Some(attended) = front.attended else {
        return Ok(0);
    };
    let outcome = attended
        .terminal()
        .and_then(|terminal| attended.wait(&child, terminal.as_ref(), None));
    if outcome.is_err() {
        spawn::end(&child);
    }
    outcome
}

/// Loads the container, once nobody is at work on it: until it has been created its root is still the host's.
fn load(request: &Request<'_>) -> Result<Container> {
    let id = request.parsed.id();
    let directory = request.store.open(id)?;
    if !directory.wait_until_unlocked(PATIENCE)? {
        bail!("cannot exec in container {id}, which is being created, started or deleted");
    }
    let record = directory.read()?;
    Ok(Container::new(directory, record))
}

/// What is read of a bundle's `config.json`; the rest is skipped.
#[derive(Deserialize)]
struct OnlyProcess {
    process: Option<Process>,
}

/// Reads a file of JSON.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read(path).during("open", path)?;
    serde_json::from_slice(&text).with_context(|| format!("cannot parse {}", path.display()))
}

/// The process: from a file, or the container's own with other arguments and what the options change.
fn process(parsed: &Parsed, container: &Container) -> Result<Process> {
    match parsed.path("process") {
        Some(path) => read_json(&path),
        None => {
            let bundle: OnlyProcess = read_json(&container.record.bundle.join("config.json"))?;
            changed_process(parsed, bundle.process.unwrap_or_default())
        }
    }
}

/// The container's own process with other arguments and what the options change.
fn changed_process(parsed: &Parsed, mut process: Process) -> Result<Process> {
    process.args = parsed.arguments[1..].to_vec();
    if process.args.is_empty() {
        bail!("exec args cannot be empty");
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
        process.user.uid = value::decimal("Atoi", uid).context("bad uid")?;
        if let Some(gid) = gid {
            process.user.gid = value::decimal("Atoi", gid).context("bad gid")?;
        }
    }
    for gid in parsed.values("additional-gids") {
        let number = value::integer(gid).ok();
        let Some(number) = number.and_then(|number| u32::try_from(number).ok()) else {
            bail!("additional-gids must be a positive number {gid}");
        };
        process.user.additional_gids.push(number);
    }
    Ok(())
}

/// `--cgroup PATH`, or `--cgroup CONTROLLER[,…]:PATH` once or more often: cgroups below the container's own.
fn own_cgroup(parsed: &Parsed, container: &Container) -> Result<Option<Cgroup>> {
    let values: Vec<&str> = parsed.values("cgroup").collect();
    if values.is_empty() {
        return Ok(None);
    }
    let record = below(&container.record.cgroup, &values)?;
    Ok(Some(Cgroup::open(&record)))
}

/// The cgroups that the values of `--cgroup` name, of which one without controllers stands alone.
fn below(own: &Record, values: &[&str]) -> Result<Record> {
    let mut record = own.clone();
    let mut seen: Vec<&str> = Vec::new();
    for value in values {
        let Some((controllers, path)) = value.split_once(':') else {
            if values.len() > 1 {
                bail!("invalid --cgroup argument: {value} (missing <controller>: prefix)");
            }
            for directory in record.paths.values_mut() {
                *directory = join_below(directory, value)?;
            }
            continue;
        };
        for controller in controllers.split(',') {
            if controller.is_empty() {
                bail!("invalid --cgroup argument: {value} (empty <controller> prefix)");
            }
            if seen.contains(&controller) {
                bail!(
                    "invalid --cgroup argument(s): controller {controller} specified multiple times"
                );
            }
            seen.push(controller);
            let Some(directory) = record.paths.get_mut(controller) else {
                bail!("unknown controller {controller} in --cgroup {value}");
            };
            *directory = join_below(directory, path)?;
        }
    }
    Ok(record)
}

/// A cgroup's directory below another one.
fn join_below(directory: &Path, path: &str) -> Result<PathBuf> {
    if path.split('/').any(|component| component == "..") {
        bail!("bad sub cgroup path: {path}");
    }
    let path = path.trim_matches('/');
    Ok(match path {
        "" => directory.to_owned(),
        path => directory.join(path),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli;

    fn built(line: &str) -> Result<Process> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let parsed = cli::parse_command(cli::command("exec").unwrap(), &words).unwrap();
        let bundle: OnlyProcess = serde_json::from_str(
            r#"{"process":{"args":["init"],"cwd":"/","env":["A=1"],"terminal":true,"noNewPrivileges":true,
                "capabilities":{"bounding":["CAP_KILL"]}},"linux":{}}"#,
        )
        .unwrap();
        changed_process(&parsed, bundle.process.unwrap())
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
            "exec args cannot be empty"
        );
        assert!(built("--user root c1 sh").is_err());
    }

    #[test]
    fn sub_cgroups() {
        let own = Record {
            paths: [("memory", "/m/c"), ("cpu", "/cpu/c"), ("cpuacct", "/cpu/c")]
                .map(|(name, path)| (name.to_owned(), path.into()))
                .into(),
            ..Record::default()
        };
        let paths = |values: &[&str]| -> Result<Vec<String>> {
            let below = below(&own, values)?;
            Ok(below
                .paths
                .values()
                .map(|path| path.display().to_string())
                .collect())
        };
        for values in [&["/"][..], &["cpu:/"]] {
            assert_eq!(paths(values).unwrap(), ["/cpu/c", "/cpu/c", "/m/c"]);
        }
        assert_eq!(
            paths(&["/a/b"]).unwrap(),
            ["/cpu/c/a/b", "/cpu/c/a/b", "/m/c/a/b"]
        );
        assert_eq!(
            paths(&["memory:x", "cpu,cpuacct:y"]).unwrap(),
            ["/cpu/c/y", "/cpu/c/y", "/m/c/x"]
        );
        for (values, error) in [
            (&[".."][..], "bad sub cgroup path: .."),
            (&["cpu:a/../b"], "bad sub cgroup path: a/../b"),
            (
                &["whaaat:/"],
                "unknown controller whaaat in --cgroup whaaat:/",
            ),
            (
                &["a", "cpu:b"],
                "invalid --cgroup argument: a (missing <controller>: prefix)",
            ),
            (
                &[":a"],
                "invalid --cgroup argument: :a (empty <controller> prefix)",
            ),
            (
                &["cpu:a", "cpu:b"],
                "invalid --cgroup argument(s): controller cpu specified multiple times",
            ),
        ] {
            assert_eq!(paths(values).unwrap_err().to_string(), error);
        }
    }
}
