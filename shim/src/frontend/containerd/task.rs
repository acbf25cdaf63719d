//! containerd's task service, versions 2 and 3: what each method does.
//!
//! A method answers at once, or starts the runtime and lets the end of that answer ([`super::job`]).

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use prost::Message;
use rustix::process::{Signal, kill_process};

use super::call::Runtime;
use super::container::{Caller, Container, End, Phase, Process, code};
use super::job::{
    Creation, Job, Prepared, Purpose, empty, exec_pid_file, gone, input_file, patience, refuse,
};
use super::logger::LoggerName;
use super::message::{
    Any, CHECKPOINT_OPTIONS, CheckpointOptions, CheckpointTaskRequest, CloseIoRequest,
    ConnectResponse, CreateTaskRequest, DeleteResponse, ExecProcessRequest, KillRequest,
    PidsResponse, ProcessDetails, ProcessInfo, ProcessRequest, Request, ResizePtyRequest,
    StatsResponse, TaskExec, UpdateTaskRequest, WaitResponse,
};
use super::mounts;
use super::server::{Server, free_slot};
use super::stats::Cgroup;
use super::stream::{Opened, Owner, Wanted};
use super::ttrpc::{Code, Refusal};
use crate::console::ConsoleSocket;
use crate::process::Streams;

/// What a method came to: an answer, or nothing yet.
type Outcome = Result<Option<Vec<u8>>, Refusal>;

impl Server {
    /// Carries out a call. `None`: the answer comes later.
    pub(super) fn call(
        &mut self,
        caller: Caller,
        request: &Request,
    ) -> Option<Result<Vec<u8>, Refusal>> {
        let outcome = match request.service.as_str() {
            "containerd.task.v2.Task" | "containerd.task.v3.Task" => {
                self.method(caller, &request.method, &request.payload)
            }
            service => Err(unimplemented(&format!("service {service}"))),
        };
        outcome.transpose()
    }

    fn method(&mut self, caller: Caller, method: &str, payload: &[u8]) -> Outcome {
        match method {
            "Create" => self.create(caller, decode(payload)?),
            "Start" => self.start(caller, &decode(payload)?),
            "Delete" => self.delete(caller, &decode(payload)?),
            "Exec" => self.exec(decode(payload)?),
            "State" => {
                let request: ProcessRequest = decode(payload)?;
                let state = self.container(&request.id)?.state(&request.exec_id)?;
                done(&state)
            }
            "Wait" => self.wait(caller, &decode(payload)?),
            "Kill" => self.kill(caller, &decode(payload)?),
            "ResizePty" => self.resize(&decode(payload)?),
            "CloseIO" => self.close_io(&decode(payload)?),
            "Pids" => self.pids(&decode(payload)?),
            "Stats" => self.stats(&decode(payload)?),
            "Connect" => self.connect_info(&decode(payload)?),
            "Pause" => self.plain_call(caller, &decode(payload)?, "pause", Purpose::Pause),
            "Resume" => self.plain_call(caller, &decode(payload)?, "resume", Purpose::Resume),
            "Update" => self.update(caller, &decode(payload)?),
            "Checkpoint" => self.checkpoint(caller, &decode(payload)?),
            "Shutdown" => {
                // Other containers of the pod may be served still.
                if self.containers.is_empty() && self.all_jobs().next().is_none() {
                    self.shutting_down = Some(std::time::Instant::now());
                }
                Ok(Some(empty()))
            }
            other => Err(unimplemented(&format!("method {other}"))),
        }
    }

    fn container(&mut self, id: &str) -> Result<&mut Container, Refusal> {
        self.containers.get_mut(id).ok_or_else(gone)
    }

    fn create(&mut self, caller: Caller, request: CreateTaskRequest) -> Outcome {
        if self.containers.contains_key(&request.id)
            || self
                .all_jobs()
                .any(|job| job.id == request.id && job.purpose.is_creation())
        {
            return Err(Refusal::new(
                Code::AlreadyExists,
                format!("container {}: already exists", request.id),
            ));
        }
        check_id(&request.id)?;
        let mut container = self.new_container(&request)?;
        let rootfs = container.bundle.join("rootfs");
        if container.has_mounts {
            let _ = std::fs::create_dir(&rootfs);
            mounts::mount_all(&request.rootfs, &rootfs).map_err(|error| refuse(&error))?;
        }
        if !request.checkpoint.is_empty() {
            // Nothing to do before Start.
            container.place = self.take_place(&request.id);
            let pid = super::message::PidResponse { pid: 0 };
            self.containers.insert(request.id, container);
            return done(&pid);
        }
        let open = self.open(&container.init.wanted, container.owner(), &container.id);
        let (mut opened, streams, console) = open.inspect_err(|_| {
            if container.has_mounts {
                mounts::unmount_all(&rootfs);
            }
        })?;
        let _ = std::fs::remove_file(container.bundle.join("init.pid"));
        container.place = self.take_place(&request.id);
        let words = create_words(&container, console.as_ref());
        let ready = opened.ready.take();
        let creation = Creation {
            container,
            rootfs: request.rootfs,
            opened,
            console,
        };
        let job = Job::new(caller, &request.id, Purpose::Create(Box::new(creation)));
        self.launch_after(ready, words, streams, job);
        Ok(None)
    }

    /// Calls of the runtime that are under way, and those to be made.
    fn all_jobs(&self) -> impl Iterator<Item = &Job> {
        let prepared = self.prepared.iter().flatten().map(Prepared::job);
        self.jobs.iter().map(|(_, job)| job).chain(prepared)
    }

    fn new_container(&self, request: &CreateTaskRequest) -> Result<Container, Refusal> {
        let bundle = PathBuf::from(&request.bundle);
        let options = super::options::read(request.options.as_ref())
            .map_err(|error| Refusal::new(Code::InvalidArgument, error.chain()))?;
        super::start::remember(&bundle, &options).map_err(|error| refuse(&error))?;
        let wanted = Wanted {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        Ok(Container {
            id: request.id.clone(),
            runtime: Runtime::new(&options, &self.place.namespace, &bundle),
            bundle,
            options,
            init: Process::new("", wanted),
            execs: std::collections::BTreeMap::new(),
            paused: false,
            checkpoint: request.checkpoint.clone(),
            has_mounts: !request.rootfs.is_empty(),
            cgroup_list: String::new(),
            cgroup: None,
            oom: None,
            kills_all: false,
            held: None,
            place: 0,
        })
    }

    fn take_place(&mut self, id: &str) -> usize {
        let place = free_slot(&mut self.places);
        self.places[place] = Some(id.to_owned());
        place
    }

    /// Opens a process's streams; with a terminal, where the runtime sends it. `id` is what a logger is told.
    fn open(
        &self,
        wanted: &Wanted,
        owner: Owner,
        id: &str,
    ) -> Result<(Opened, Streams, Option<ConsoleSocket>), Refusal> {
        let name = LoggerName {
            id,
            namespace: &self.place.namespace,
        };
        let open = || {
            if wanted.terminal {
                let (console, streams) = (ConsoleSocket::listen(None)?, Streams::null()?);
                return Ok((Opened::for_terminal(wanted, &name)?, streams, Some(console)));
            }
            let (ours, theirs) = Opened::pipes(wanted, owner, &name)?;
            Ok((ours, theirs, None))
        };
        open().map_err(|error| refuse(&error))
    }

    fn start(&mut self, caller: Caller, request: &ProcessRequest) -> Outcome {
        if !request.exec_id.is_empty() {
            return self.start_exec(caller, request);
        }
        let container = self.container(&request.id)?;
        let phase = container.init.phase;
        if container.init.busy || !matches!(phase, Phase::Added | Phase::Created) {
            let text = format!("cannot start a {} process", name_of(phase));
            return Err(Refusal::new(Code::FailedPrecondition, text));
        }
        if phase == Phase::Added {
            return self.restore(caller, &request.id);
        }
        let words = container.runtime.command(["start", request.id.as_str()]);
        container.init.busy = true;
        self.call_runtime(&words, Some(caller), &request.id, Purpose::Start);
        Ok(None)
    }

    fn restore(&mut self, caller: Caller, id: &str) -> Outcome {
        let container = self.containers.get(id).ok_or_else(gone)?;
        let (mut opened, streams, console) =
            self.open(&container.init.wanted, container.owner(), &container.id)?;
        let words = restore_words(container, console.as_ref());
        self.container(id)?.init.busy = true;
        let ready = opened.ready.take();
        let job = Job::new(caller, id, Purpose::Restore { opened, console });
        self.launch_after(ready, words, streams, job);
        Ok(None)
    }

    fn exec(&mut self, request: ExecProcessRequest) -> Outcome {
        check_id(&request.exec_id)?;
        let container = self.container(&request.id)?;
        if container.execs.contains_key(&request.exec_id) {
            return Err(Refusal::new(
                Code::AlreadyExists,
                format!("id {}: already exists", request.exec_id),
            ));
        }
        if container.init.phase == Phase::Stopped {
            return Err(Refusal::new(
                Code::FailedPrecondition,
                "cannot exec in a stopped container",
            ));
        }
        let wanted = Wanted {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let mut process = Process::new(&request.exec_id, wanted);
        process.spec = with_terminal(&request.spec.unwrap_or_default().value, request.terminal)?;
        container.execs.insert(request.exec_id.clone(), process);
        let event = TaskExec {
            container_id: request.id,
            exec_id: request.exec_id,
            pid: 0,
        };
        self.publisher.publish(
            "/tasks/exec-added",
            "containerd.events.TaskExecAdded",
            &event,
        );
        Ok(Some(empty()))
    }

    fn start_exec(&mut self, caller: Caller, request: &ProcessRequest) -> Outcome {
        let (id, exec_id) = (&request.id, &request.exec_id);
        let container = self.container(id)?;
        if container.held.is_some() || container.init.phase == Phase::Stopped {
            let text = format!("container {id} init process is not running");
            return Err(Refusal::new(Code::FailedPrecondition, text));
        }
        let owner = container.owner();
        let file = container.bundle.join(format!("{exec_id}.process.json"));
        let process = container.process(exec_id)?;
        if process.busy || process.phase != Phase::Added {
            let text = format!("cannot start a {} process", name_of(process.phase));
            return Err(Refusal::new(Code::FailedPrecondition, text));
        }
        let wanted = process.wanted.clone();
        write_private(&file, &process.spec).map_err(|error| refuse(&error))?;
        let (mut opened, streams, console) =
            self.open(&wanted, owner, exec_id).inspect_err(|_| {
                let _ = std::fs::remove_file(&file);
            })?;
        let container = self.container(id)?;
        let pid_file = exec_pid_file(container, exec_id);
        let mut words = container.runtime.command(["exec", "--process"]);
        words.push(file.clone().into());
        words.push("--detach".into());
        words.push("--pid-file".into());
        words.push(pid_file.clone().into());
        add_console(&mut words, console.as_ref());
        words.push(id.into());
        let process = container.process(exec_id)?;
        process.spec = Vec::new();
        process.busy = true;
        let ready = opened.ready.take();
        let purpose = Purpose::Exec {
            exec_id: exec_id.clone(),
            opened,
            console,
            files: [file, pid_file],
        };
        let job = Job::new(caller, id, purpose);
        self.launch_after(ready, words, streams, job);
        Ok(None)
    }

    fn delete(&mut self, caller: Caller, request: &ProcessRequest) -> Outcome {
        let container = self.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        if process.busy || process.deleting.is_some() {
            let text = "another call about this process is under way";
            return Err(Refusal::new(Code::FailedPrecondition, text));
        }
        match process.phase {
            Phase::Running => {
                let text = "cannot delete a running process";
                return Err(Refusal::new(Code::FailedPrecondition, text));
            }
            Phase::Added if !request.exec_id.is_empty() => {
                if let Some(process) = container.execs.remove(&request.exec_id) {
                    self.retire(process);
                }
                return done(&DeleteResponse::default());
            }
            // A created one is killed by the runtime; an added one does not exist for it.
            Phase::Added | Phase::Created | Phase::Stopped => {}
        }
        process.deleting = Some((caller, patience()));
        // The loop goes on with it before it waits again.
        Ok(None)
    }

    fn wait(&mut self, caller: Caller, request: &ProcessRequest) -> Outcome {
        let process = self.container(&request.id)?.process(&request.exec_id)?;
        match process.end {
            Some(end) if process.untold.is_none() => Ok(Some(waited(end))),
            _ => {
                process.waiters.push(caller);
                Ok(None)
            }
        }
    }

    fn kill(&mut self, caller: Caller, request: &KillRequest) -> Outcome {
        let container = self.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        let finished = || {
            Refusal::new(
                Code::NotFound,
                "process already finished: not found".to_owned(),
            )
        };
        if process.phase == Phase::Stopped {
            return Err(finished());
        }
        if !request.exec_id.is_empty() {
            let pid = process
                .pid
                .ok_or_else(|| Refusal::new(Code::FailedPrecondition, "process not created"))?;
            let signal = i32::try_from(request.signal)
                .ok()
                .and_then(Signal::from_named_raw)
                .ok_or_else(|| {
                    Refusal::new(
                        Code::InvalidArgument,
                        format!("there is no signal {}", request.signal),
                    )
                })?;
            // It is our child and was not collected: the pid is its.
            return match kill_process(pid, signal) {
                Ok(()) => Ok(Some(empty())),
                Err(rustix::io::Errno::SRCH) => Err(finished()),
                Err(errno) => Err(Refusal::new(Code::Unknown, format!("kill: {errno}"))),
            };
        }
        let signal = request.signal.to_string();
        let mut words = vec!["kill"];
        if request.all {
            words.push("--all");
        }
        words.extend([request.id.as_str(), signal.as_str()]);
        let words = container.runtime.command(words);
        self.call_runtime(&words, Some(caller), &request.id, Purpose::Kill);
        Ok(None)
    }

    fn resize(&mut self, request: &ResizePtyRequest) -> Outcome {
        let process = self.container(&request.id)?.process(&request.exec_id)?;
        if let Some(terminal) = &process.terminal {
            let side = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
            crate::console::resize(terminal, side(request.height), side(request.width));
        }
        Ok(Some(empty()))
    }

    fn close_io(&mut self, request: &CloseIoRequest) -> Outcome {
        let process = self.container(&request.id)?.process(&request.exec_id)?;
        if request.stdin {
            // With the last writer the fifo ends, and the pump with it.
            process.stdin_writer = None;
            process.stdin_closed = true;
        }
        Ok(Some(empty()))
    }

    fn pids(&mut self, request: &ProcessRequest) -> Outcome {
        let container = self.container(&request.id)?;
        let pids = container.cgroup().map(Cgroup::pids).unwrap_or_default();
        let processes = pids
            .into_iter()
            .map(|pid| {
                let exec = container
                    .execs
                    .values()
                    .find(|process| process.number() == pid);
                ProcessInfo {
                    pid,
                    info: exec.map(|process| {
                        let details = ProcessDetails {
                            exec_id: process.exec_id.clone(),
                        };
                        Any::pack("containerd.runc.v1.ProcessDetails", &details)
                    }),
                }
            })
            .collect();
        done(&PidsResponse { processes })
    }

    fn stats(&mut self, request: &ProcessRequest) -> Outcome {
        let container = self.container(&request.id)?;
        let cgroup = container
            .cgroup()
            .ok_or_else(|| Refusal::new(Code::NotFound, "cgroup does not exist: not found"))?;
        done(&StatsResponse {
            stats: Some(cgroup.metrics()),
        })
    }

    fn connect_info(&mut self, request: &ProcessRequest) -> Outcome {
        let task_pid = self
            .containers
            .get(&request.id)
            .map_or(0, |container| container.init.number());
        done(&ConnectResponse {
            shim_pid: std::process::id(),
            task_pid,
            version: String::new(),
        })
    }

    /// A call of the runtime that takes nothing but the id.
    fn plain_call(
        &mut self,
        caller: Caller,
        request: &ProcessRequest,
        word: &str,
        purpose: Purpose,
    ) -> Outcome {
        let container = self.container(&request.id)?;
        if container.init.phase == Phase::Stopped {
            let text = format!("cannot {word} a stopped container");
            return Err(Refusal::new(Code::FailedPrecondition, text));
        }
        let words = container.runtime.command([word, request.id.as_str()]);
        self.call_runtime(&words, Some(caller), &request.id, purpose);
        Ok(None)
    }

    fn update(&mut self, caller: Caller, request: &UpdateTaskRequest) -> Outcome {
        let container = self.container(&request.id)?;
        let resources = request.resources.clone().unwrap_or_default().value;
        let words = container
            .runtime
            .command(["update", "--resources", "-", request.id.as_str()]);
        let file = container.bundle.join("resources.json");
        let streams = || {
            Ok(Streams {
                stdin: Some(input_file(&file, &resources)?),
                ..Streams::null()?
            })
        };
        let streams = streams().map_err(|error| refuse(&error))?;
        let job = Job::new(caller, &request.id, Purpose::Update);
        self.launch(&words, &streams, job);
        Ok(None)
    }

    fn checkpoint(&mut self, caller: Caller, request: &CheckpointTaskRequest) -> Outcome {
        let options: CheckpointOptions = match &request.options {
            Some(any) if !any.value.is_empty() => {
                any.unpack(CHECKPOINT_OPTIONS).ok_or_else(|| {
                    Refusal::new(
                        Code::InvalidArgument,
                        format!("unsupported checkpoint options {}", any.type_url),
                    )
                })?
            }
            _ => CheckpointOptions::default(),
        };
        let container = self.container(&request.id)?;
        let (work, is_own) = match options.work_path.as_str() {
            "" => (container.bundle.join("criu-work"), true),
            path => (PathBuf::from(path), false),
        };
        let words = container
            .runtime
            .command(checkpoint_words(request, &options, &work));
        let purpose = Purpose::Checkpoint {
            path: request.path.clone(),
            work: is_own.then_some(work),
        };
        self.call_runtime(&words, Some(caller), &request.id, purpose);
        Ok(None)
    }
}

fn checkpoint_words(
    request: &CheckpointTaskRequest,
    options: &CheckpointOptions,
    work: &Path,
) -> Vec<OsString> {
    let image = match options.image_path.as_str() {
        "" => &request.path,
        path => path,
    };
    let mut words: Vec<OsString> = vec![
        "checkpoint".into(),
        "--image-path".into(),
        image.into(),
        "--work-path".into(),
        work.into(),
    ];
    let switches = [
        (!options.exit, "--leave-running"),
        (options.open_tcp, "--tcp-established"),
        (options.external_unix_sockets, "--ext-unix-sk"),
        (options.terminal, "--shell-job"),
        (options.file_locks, "--file-locks"),
    ];
    words.extend(
        switches
            .iter()
            .filter(|(on, _)| *on)
            .map(|(_, word)| (*word).into()),
    );
    for namespace in &options.empty_namespaces {
        words.extend(["--empty-ns".into(), namespace.into()]);
    }
    if !options.cgroups_mode.is_empty() {
        words.push("--manage-cgroups-mode".into());
        words.push(options.cgroups_mode.clone().into());
    }
    if !options.parent_path.is_empty() {
        words.push("--parent-path".into());
        words.push(options.parent_path.clone().into());
    }
    words.push(request.id.clone().into());
    words
}

fn create_words(container: &Container, console: Option<&ConsoleSocket>) -> Vec<OsString> {
    let mut words = container.runtime.command(["create", "--bundle"]);
    add_place(&mut words, container);
    if container.options.no_pivot_root {
        words.push("--no-pivot".into());
    }
    if container.options.no_new_keyring {
        words.push("--no-new-keyring".into());
    }
    add_console(&mut words, console);
    words.push(container.id.clone().into());
    words
}

fn restore_words(container: &Container, console: Option<&ConsoleSocket>) -> Vec<OsString> {
    let work = match container.options.criu_work_path.as_str() {
        "" => container.bundle.join("work"),
        path => PathBuf::from(path),
    };
    let mut words =
        container
            .runtime
            .command(["restore", "--detach", "--no-subreaper", "--bundle"]);
    add_place(&mut words, container);
    words.push("--image-path".into());
    words.push(container.checkpoint.clone().into());
    words.push("--work-path".into());
    words.push(work.into());
    if container.options.no_pivot_root {
        words.push("--no-pivot".into());
    }
    add_console(&mut words, console);
    words.push(container.id.clone().into());
    words
}

/// The bundle, and where the id of the first process is to be written.
fn add_place(words: &mut Vec<OsString>, container: &Container) {
    words.push(container.bundle.clone().into());
    words.push("--pid-file".into());
    words.push(container.bundle.join("init.pid").into());
}

fn add_console(words: &mut Vec<OsString>, console: Option<&ConsoleSocket>) {
    if let Some(console) = console {
        words.push("--console-socket".into());
        words.push(console.argument().into());
    }
}

/// Ids become parts of file names here.
fn check_id(id: &str) -> Result<(), Refusal> {
    let fits = !id.is_empty() && !id.starts_with('.') && !id.contains(['/', '\0']);
    if fits {
        return Ok(());
    }
    Err(Refusal::new(
        Code::InvalidArgument,
        format!("invalid id {id:?}"),
    ))
}

/// The process's specification with `terminal` as the request has it.
fn with_terminal(spec: &[u8], terminal: bool) -> Result<Vec<u8>, Refusal> {
    let invalid = |error: serde_json::Error| {
        Refusal::new(
            Code::InvalidArgument,
            format!("the process's specification: {error}"),
        )
    };
    let mut value: serde_json::Value = serde_json::from_slice(spec).map_err(invalid)?;
    match value.as_object_mut() {
        Some(members) => members.insert("terminal".into(), terminal.into()),
        None => {
            let text = "the process's specification is no object";
            return Err(Refusal::new(Code::InvalidArgument, text));
        }
    };
    serde_json::to_vec(&value).map_err(invalid)
}

/// Writes a file that only we may read: an environment can hold secrets.
fn write_private(path: &Path, data: &[u8]) -> Result<(), crate::error::Error> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(data))
        .map_err(crate::error::Error::path("write", path))
}

fn name_of(phase: Phase) -> &'static str {
    match phase {
        Phase::Added => "new",
        Phase::Created => "created",
        Phase::Running => "running",
        Phase::Stopped => "stopped",
    }
}

fn decode<M: Message + Default>(payload: &[u8]) -> Result<M, Refusal> {
    M::decode(payload).map_err(|error| Refusal::new(Code::InvalidArgument, error.to_string()))
}

fn done(message: &impl Message) -> Outcome {
    Ok(Some(message.encode_to_vec()))
}

fn unimplemented(what: &str) -> Refusal {
    Refusal::new(Code::Unimplemented, format!("{what} is not implemented"))
}

/// The answer to Wait.
pub(super) fn waited(end: End) -> Vec<u8> {
    WaitResponse {
        exit_status: code(end.status),
        exited_at: Some(end.at),
    }
    .encode_to_vec()
}
