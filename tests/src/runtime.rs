//! `qrun` with a state directory of its own.

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use crate::bundle::Bundle;
use crate::command::{Outcome, run, typed, wait};
use crate::executable;
use crate::host;
use crate::programs::built;
use crate::user::{USER, give};
use crate::wait::{patience, until, within};
use crate::words;

/// Containers of this process so far.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// A runtime started by [`USER`].
#[derive(Debug)]
struct ByUser {
    /// A copy of the program where the user can execute it.
    program: PathBuf,
    /// The cgroup it is started in.
    place: Option<PathBuf>,
}

/// A runtime and the containers it made; they are deleted when it is dropped, and nothing of them
/// may be left then.
#[derive(Debug)]
pub struct Runtime {
    directory: tempfile::TempDir,
    /// How it is started by somebody else than root.
    user: Option<ByUser>,
    ids: RefCell<Vec<String>>,
    /// A program and its arguments that runs `qrun`.
    wrapper: Vec<String>,
}

/// What is put before `qrun` where `$QSTACK_WITHOUT` asks for it: the program beside the tests.
fn without_calls() -> Vec<String> {
    let (Ok(calls), Ok(test)) = (std::env::var("QSTACK_WITHOUT"), std::env::current_exe()) else {
        return Vec::new();
    };
    let programs = test.parent().and_then(Path::parent);
    let program = programs.map(|directory| directory.join("without-calls").display().to_string());
    program.into_iter().chain([calls]).collect()
}

impl Runtime {
    /// Makes a runtime without containers whose `qrun` is run by `wrapper`.
    #[must_use]
    pub fn wrapped_in(wrapper: &[&str]) -> Self {
        let mut runtime = Self::new();
        runtime.wrapper = wrapper.iter().map(|&word| word.to_owned()).collect();
        runtime
    }

    /// Makes a runtime without containers. With names of system calls in `$QSTACK_WITHOUT`, separated by commas, `qrun` runs
    /// as on a kernel that lacks them, and with it every test that asks for nothing else.
    ///
    /// # Panics
    /// When `qrun` is not built.
    #[must_use]
    pub fn new() -> Self {
        drop(built("qrun"));
        match tempfile::Builder::new().prefix("qrt").tempdir() {
            Ok(directory) => Self {
                directory,
                user: None,
                ids: RefCell::default(),
                wrapper: without_calls(),
            },
            Err(error) => panic!("make a state directory: {error}"),
        }
    }

    /// Makes one for [`USER`], started in the cgroup `place` if there is one.
    ///
    /// # Panics
    /// When `qrun` is not built.
    #[must_use]
    pub fn of_user(place: Option<PathBuf>) -> Self {
        let mut runtime = Self::new();
        let program = runtime.directory().join("bin/qrun");
        if let Err(error) = std::fs::create_dir(runtime.directory().join("bin")) {
            panic!("make a directory for qrun: {error}");
        }
        executable::copy(&built("qrun"), &program);
        give(runtime.directory());
        runtime.user = Some(ByUser { program, place });
        runtime
    }

    /// A directory for what the test wants to keep beside the state.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The `--root` of this runtime.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// An id nobody else uses, that ends in `name`.
    #[must_use]
    pub fn id(&self, name: &str) -> String {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let id = format!("qt{}-{count}-{name}", std::process::id());
        self.ids.borrow_mut().push(id.clone());
        id
    }

    /// The command `qrun --root … LINE`.
    #[must_use]
    pub fn command(&self, line: &str) -> Command {
        let mut command = self.program();
        command
            .arg("--root")
            .arg(self.root())
            .args(words::split(line));
        command
    }

    /// The command `qrun`, by whom it may be.
    #[must_use]
    pub fn program(&self) -> Command {
        let Some(user) = &self.user else {
            let Some((program, arguments)) = self.wrapper.split_first() else {
                return Command::new(built("qrun"));
            };
            let mut command = Command::new(program);
            command.args(arguments).arg(built("qrun"));
            return command;
        };
        let mut command = match &user.place {
            None => {
                let mut command = Command::new(&user.program);
                command.uid(USER).gid(USER);
                command
            }
            Some(place) => {
                let mut command = Command::new("sh");
                let script = format!(
                    "echo 0 > \"$1\"/cgroup.procs && shift && exec setpriv --reuid {USER} --regid {USER} --clear-groups \"$@\""
                );
                command
                    .args(["-c", &script, "sh"])
                    .arg(place)
                    .arg(&user.program);
                command
            }
        };
        command
            .current_dir(self.directory())
            .env_remove("XDG_RUNTIME_DIR");
        command
    }

    /// Runs `qrun LINE` to its end.
    #[track_caller]
    pub fn run(&self, line: &str) -> Outcome {
        run(&mut self.command(line))
    }

    /// Runs a bundle in the foreground, under an id of its own, to its end.
    #[track_caller]
    pub fn run_bundle(&self, bundle: &Bundle) -> Outcome {
        let id = self.id("run");
        self.run(&format!("run --bundle {} {id}", bundle.path().display()))
    }

    /// Runs `qrun LINE` by way of another program: `prefix qrun LINE`.
    #[track_caller]
    pub fn run_by(&self, prefix: &str, line: &str) -> Outcome {
        let command = self.command(line);
        let words = words::split(prefix);
        let mut by = Command::new(&words[0]);
        by.args(&words[1..])
            .arg(command.get_program())
            .args(command.get_args());
        run(&mut by)
    }

    /// Runs `qrun LINE` with a file for stdout and stderr, as for a command after which a container
    /// lives on; gives the file.
    ///
    /// # Panics
    /// When the command fails.
    #[track_caller]
    pub fn leave(&self, line: &str) -> PathBuf {
        let file = self
            .directory()
            .join(format!("out{}", self.ids.borrow().len()));
        let mut command = self.command(line);
        let line = typed(&command);
        let streams = File::create(&file).and_then(|out| Ok((out.try_clone()?, out)));
        let spawned = streams
            .and_then(|(out, err)| command.stdin(Stdio::null()).stdout(out).stderr(err).spawn());
        let code = match spawned {
            Ok(mut child) => wait(&mut child, patience()),
            Err(error) => panic!("start {line}: {error}"),
        };
        let said = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(code == Some(0), "{line}\nended with {code:?}:\n{said}");
        file
    }

    /// Creates and starts a container of `bundle`, and gives its id.
    #[track_caller]
    pub fn started(&self, name: &str, bundle: &Bundle) -> String {
        let id = self.id(name);
        self.leave(&format!("create --bundle {} {id}", bundle.path().display()));
        self.run(&format!("start {id}")).ok();
        id
    }

    /// The state of a container, as `qrun state` prints it.
    ///
    /// # Panics
    /// When that is not JSON.
    #[track_caller]
    pub fn state(&self, id: &str) -> Value {
        let outcome = self.run(&format!("state {id}"));
        match serde_json::from_str(outcome.ok()) {
            Ok(state) => state,
            Err(error) => panic!("not JSON: {error}{}", outcome.report()),
        }
    }

    /// Waits until a container's status is `status`.
    #[track_caller]
    pub fn wait_for(&self, id: &str, status: &str) {
        let what = format!("{id} is {status}");
        until(&what, || (self.state(id)["status"] == status).then_some(()));
    }

    /// Fails unless nothing of the containers made so far is on the host.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        let traces = || host::traces(self.directory.path(), &self.ids.borrow());
        let state =
            || std::fs::read_dir(self.root()).map_or(0, |entries| entries.flatten().count());
        let clean = within(std::time::Duration::from_secs(5), || {
            (traces().is_empty() && state() == 0).then_some(())
        });
        assert!(
            clean.is_some(),
            "left behind: {} states, {:#?}",
            state(),
            traces()
        );
    }
}

impl Default for Runtime {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        for id in self.ids.borrow().iter() {
            if self.root().join(id).exists() {
                let _ = self.command(&format!("delete --force {id}")).output();
            }
        }
        if !std::thread::panicking() {
            self.assert_nothing_left();
        }
    }
}
