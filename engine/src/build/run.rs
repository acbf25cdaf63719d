//! `RUN`: a command in a container on top of the stage.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use bundle_tools::rooted;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat2, statat, unlinkat,
};
use rustix::io::Errno;

use super::cache::Key;
use super::copy::{Manner, Owner, Target};
use super::ignore::Ignore;
use super::instruction::{Command, Run};
use super::mount::Mounts;
use super::stage::{Builder, PROXY_ARGS, State};
use super::{Error, FileContext, Result, config};
use crate::container::model::Options;
use crate::container::step::{Ended, Step};
use crate::network::{self, Endpoint};

/// Where a script of a heredoc lies while it runs.
const SCRIPT: &str = "/.qengine-build-script";

/// Places where the runtime makes files and directories for its mounts, the deepest first; and the script.
const MOUNT_POINTS: [&str; 8] = [
    ".qengine-build-script",
    "etc/resolv.conf",
    "etc/hostname",
    "etc/hosts",
    "etc",
    "proc",
    "sys",
    "dev",
];

/// A script that says itself what runs it.
struct Script(String);

impl<'b> Builder<'b> {
    pub(super) fn run(
        &mut self,
        state: &mut State,
        run: &Run,
        stage: usize,
        is_last: bool,
    ) -> Result<()> {
        let (words, script) = command_line(state, run);
        let network = self.network(run)?;
        let args = visible_args(state);
        let mut text = "RUN ".to_owned();
        if !args.is_empty() {
            text.push_str(&format!("|{} {} ", args.len(), pairs(&args).join(" ")));
        }
        text.push_str(&words.join(" "));

        let mut key = Key::new(state.chain().as_ref(), &state.config);
        key.add(b"RUN");
        words.iter().for_each(|word| key.add(word.as_bytes()));
        key.add(format!("{args:?} {network:?}").as_bytes());
        if let Some(script) = &script {
            key.add(script.0.as_bytes());
        }
        self.add_mounts(&mut key, state, &run.mounts, stage)?;
        self.layer(state, (key, text), is_last, |builder, state| {
            let mounts = builder.prepare_mounts(state, &run.mounts, stage)?;
            let command = Prepared {
                words,
                network,
                args,
                script,
                mounts,
            };
            builder.execute(state, command).map(Some)
        })
    }

    fn network(&self, run: &Run) -> Result<network::Mode> {
        match run.network.as_deref() {
            None | Some("default") => Ok(self.options.network.clone()),
            Some("none") => Ok(network::Mode::None),
            Some("host") => Ok(network::Mode::Host),
            Some(name) => Ok(network::Mode::Networks(vec![Endpoint::new(name)])),
        }
    }

    fn execute(&self, state: &State, command: Prepared<'b>) -> Result<Step<'b>> {
        let mut image = state.as_image();
        // Nothing of the caller's own environment (CVE-2021-3602): the image's, the arguments, and proxies that were
        // given for the build.
        let proxies = PROXY_ARGS.into_iter().filter_map(|name| {
            let value = self.options.build_args.get(name)?;
            Some((name.to_owned(), value.clone()))
        });
        for (name, value) in proxies.chain(command.args) {
            if config::env(&image.config.config, &name).is_none() {
                config::set_env(&mut image.config.config, &name, &value);
            }
        }
        for (name, value) in &command.mounts.env {
            config::set_env(&mut image.config.config, name, value);
        }
        let options = Options {
            image: "build".to_owned(),
            command: command.words,
            entrypoint: Some(Vec::new()),
            network: command.network,
            volumes: command.mounts.volumes.clone(),
            tmpfs: command.mounts.tmpfs.clone(),
            add_hosts: self.options.add_hosts.clone(),
            ..Options::default()
        };
        let mut step = Step::mount(self.store, self.programs, &image, options)?;
        let before = MountPoints::look(&step.root(), &command.mounts.targets)?;
        if let Some(script) = &command.script {
            script.write(&step.root())?;
        }
        let streams = self
            .progress
            .streams()
            .doing("pass on", Path::new("standard output"))?;
        let ended = step.run(streams, self.progress.cancel())?;
        match ended {
            Ended::Exited(0) => {}
            Ended::Exited(code) => return Err(Error::Command(code)),
            Ended::Cancelled => return Err(Error::Cancelled),
        }
        before.remove_new(&step.upper())?;
        Ok(step)
    }
}

/// A command with all it needs.
struct Prepared<'b> {
    words: Vec<String>,
    network: network::Mode,
    args: BTreeMap<String, String>,
    script: Option<Script>,
    mounts: Mounts<'b>,
}

/// The words to run, and a script that has to lie in the container first.
fn command_line(state: &State, run: &Run) -> (Vec<String>, Option<Script>) {
    let inner = state.container();
    let line = match &run.command {
        Command::Exec(words) => return (words.clone(), None),
        Command::Shell(line) => line,
    };
    match &run.heredocs[..] {
        // The heredoc is the command.
        [only] if only.marker == *line => {
            if only.content.starts_with("#!") {
                let script = Script(only.content.clone());
                return (config::shell(inner, SCRIPT), Some(script));
            }
            (config::shell(inner, &only.content), None)
        }
        // The shell reads them as its own.
        heredocs => {
            let mut text = line.clone();
            for heredoc in heredocs {
                text = format!("{text}\n{}{}", heredoc.content, heredoc.name);
            }
            (config::shell(inner, &text), None)
        }
    }
}

/// Arguments that the environment does not hide.
fn visible_args(state: &State) -> BTreeMap<String, String> {
    let is_visible = |name: &str| config::env(state.container(), name).is_none();
    let args = state.args.iter().filter(|(name, _)| is_visible(name));
    args.map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

fn pairs(args: &BTreeMap<String, String>) -> Vec<String> {
    args.iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect()
}

impl Script {
    fn write(&self, root: &Path) -> Result<()> {
        let manner = Manner {
            owner: Owner::Ids(0, 0),
            mode: None,
            exclude: Ignore::default(),
            devices: false,
        };
        let mut target = Target::open(root)?;
        let path = SCRIPT.trim_start_matches('/').as_bytes();
        target.write(&mut self.0.as_bytes(), 0o755, None, path, &manner)
    }
}

/// What was at the mount points before the runtime made what it needs; the deepest come first.
struct MountPoints {
    /// Those where nothing was.
    missing: Vec<String>,
    /// Directories that were there.
    directories: Vec<(String, Stat)>,
}

impl MountPoints {
    fn look(root: &Path, targets: &[String]) -> Result<MountPoints> {
        let directory = File::open(root).doing("open", root)?;
        let mut before = MountPoints {
            missing: Vec::new(),
            directories: Vec::new(),
        };
        for path in candidates(targets) {
            let found =
                rooted::walk(&directory, path.as_bytes()).and_then(|found| Ok(fstat(&found.fd)?));
            match found {
                Err(_) => before.missing.push(path),
                Ok(stat) => before.directories.push((path, stat)),
            }
        }
        Ok(before)
    }

    /// Takes away what was made for mounts and is still as empty as it was made. The command may have put anything in
    /// its place, a link to elsewhere too (CVE-2024-23652): no link is followed.
    fn remove_new(&self, upper: &Path) -> Result<()> {
        let root = File::open(upper).doing("open", upper)?;
        for path in &self.missing {
            remove_empty(&root, path, |_| true).doing("remove", &upper.join(path))?;
        }
        for (path, before) in &self.directories {
            let prefix = format!("{path}/");
            // Copied up for what was made in it alone: then it is no change. With something else in it, it stays.
            if self.missing.iter().any(|made| made.starts_with(&prefix)) {
                let is_as_before = |now: &Stat| {
                    (now.st_mode, now.st_uid, now.st_gid)
                        == (before.st_mode, before.st_uid, before.st_gid)
                };
                remove_empty(&root, path, is_as_before).doing("remove", &upper.join(path))?;
            }
        }
        Ok(())
    }
}

/// The usual mount points and those of `targets`, each before the directories it is in.
fn candidates(targets: &[String]) -> Vec<String> {
    let mut paths: Vec<String> = MOUNT_POINTS.map(str::to_owned).to_vec();
    for target in targets {
        let mut path = target.trim_start_matches('/');
        while !path.is_empty() {
            paths.push(path.to_owned());
            path = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        }
    }
    paths.sort_by_key(|path| std::cmp::Reverse(path.matches('/').count()));
    paths.dedup();
    paths
}

/// Removes an empty directory or file of which `condition` holds.
fn remove_empty(
    root: &File,
    path: &str,
    condition: impl Fn(&Stat) -> bool,
) -> rustix::io::Result<()> {
    let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let parent = match openat2(root, parent, flags, Mode::empty(), resolve) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
        other => other?,
    };
    let stat = match statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    if !condition(&stat) {
        return Ok(());
    }
    let result = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => unlinkat(&parent, name, AtFlags::REMOVEDIR),
        // The script has no place in the layer, empty or not.
        FileType::RegularFile if stat.st_size == 0 || name == SCRIPT.trim_start_matches('/') => {
            unlinkat(&parent, name, AtFlags::empty())
        }
        _ => Ok(()),
    };
    match result {
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
        other => other,
    }
}
