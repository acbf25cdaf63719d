//! `run`: create and start a container, and stay with it unless told otherwise.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use bundle_tools::image::Platform;
use clap::Args;
use nix::sys::signal::Signal;
use qengine::container::attach::{Connection, DetachKeys, Ended};
use qengine::container::create::{Created, create};
use qengine::container::find::Handle;
use qengine::container::model::Process;
use qengine::container::start::{Streams, start_locked};
use qengine::container::wait::{ExitWatch, until_exit};
use qengine::container::{self, Live, cleanup, recover};
use qengine::image::{self, Image};
use qengine::network::{self, Mode, PacketFilter, PortMapping};
use qengine::portmap;
use qengine::store::Lock;

use super::pull::{RegistryFlags, pull_missing};
use super::{Context, exit_code};
use crate::flags::{ContainerFlags, Words};
use crate::output::say;
use crate::terminal::{self, Relay};

/// Run a command in a new container
#[derive(Debug, Args)]
#[command(
    override_usage = "qengine run [OPTIONS] IMAGE [COMMAND]...",
    after_help = "\
Examples:
  qengine run --rm base echo hello
  qengine run -it base sh
  qengine run -d --name web -p 8080:80 localhost:5000/debian:nginx nginx -g 'daemon off;'"
)]
#[command(disable_help_flag = true)]
pub(crate) struct Run {
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    /// Print the id and leave the container running
    #[arg(short, long)]
    detach: bool,
    /// Keys that leave the container running and give the terminal back
    #[arg(long, value_name = "KEYS", default_value = DetachKeys::DEFAULT)]
    detach_keys: String,
    /// Pass signals on to the process
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    sig_proxy: bool,
    #[command(flatten)]
    pull: PullFlags,
    /// Write the container's id to a file, which must not be there yet
    #[arg(long, value_name = "FILE")]
    cidfile: Option<std::path::PathBuf>,
    #[command(flatten)]
    container: ContainerFlags,
    #[command(flatten)]
    words: Words,
}

/// When to ask the registry, and how.
#[derive(Debug, Args)]
#[command(next_help_heading = "Image")]
pub(super) struct PullFlags {
    /// Pull the image: missing, always or never
    #[arg(long, value_name = "WHEN", default_value = "missing")]
    pull: String,
    /// No words about the pull
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    registry: RegistryFlags,
}

impl PullFlags {
    /// Finds the image, or fetches it. The guard keeps it from being removed before the container mentions it.
    fn image(&self, context: &Context, text: &str) -> Result<(Image, Lock)> {
        if !["always", "missing", "never"].contains(&self.pull.as_str()) {
            bail!(
                "invalid --pull {:?}: it takes always, missing or never",
                self.pull
            );
        }
        let guard = image::guard(&context.store)?;
        if self.pull != "always"
            && self.registry.platform.is_none()
            && let Some(image) = image::find(&context.store, text)?
        {
            warn_of_platform(&image);
            return Ok((image, guard));
        }
        if self.pull == "never" {
            bail!("image {text} is not here, and --pull never forbids to fetch it");
        }
        // A pull may collect what was removed, for which it must be alone.
        drop(guard);
        let image = pull_missing(&context.store, text, &self.registry, self.quiet)?;
        Ok((image, image::guard(&context.store)?))
    }
}

/// An image of another platform may run, by emulation, or may not.
fn warn_of_platform(image: &Image) {
    let config = &image.config;
    let actual = Platform::new(&config.os, &config.architecture, config.variant.as_deref());
    if actual.matches(&Platform::host()).is_none() {
        crate::flags::warn(&format!(
            "the image's platform ({actual}) does not match this machine's ({})",
            Platform::host()
        ));
    }
}

/// For what a container is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// To be started some day.
    Create,
    /// To run on its own.
    RunDetached,
    /// To run with its maker attached, whose end of input is the container's.
    RunAttached,
}

/// Steps that `run` and `create` share: the image, the options, the container.
pub(super) fn make(
    context: &Context,
    pull: &PullFlags,
    flags: ContainerFlags,
    image: String,
    command: Vec<String>,
    way: Way,
) -> Result<Created> {
    let publish_all = flags.publishes_all();
    let mut options = flags.into_options(&context.store, image, command)?;
    warn_of_what_v2_lacks(&mut options);
    let (image, _guard) = pull
        .image(context, &options.image)
        .map_err(|error| no_image(error, &options))?;
    if publish_all {
        for port in image
            .config
            .config
            .exposed_ports
            .keys()
            .chain(&options.expose.clone())
        {
            let exposed: Vec<PortMapping> = PortMapping::parse(port)?;
            options.ports.extend(exposed);
        }
    }
    warn_of_idle_ports(context, &options)?;
    options.stdin_once = way == Way::RunAttached;
    Ok(create(&context.store, &image, options, way != Way::Create)?)
}

/// Ports that nobody serves: without a network of its own to lead to, or without a packet filter and a forwarder.
#[expect(clippy::print_stderr, reason = "a warning beside the answer")]
fn warn_of_idle_ports(context: &Context, options: &container::model::Options) -> Result<()> {
    if options.ports.is_empty() {
        return Ok(());
    }
    match options.network {
        Mode::Networks(_) => {}
        Mode::Host | Mode::None | Mode::Container(_) => {
            eprintln!(
                "qengine: warning: published ports are discarded: the container has no network of its own"
            );
            return Ok(());
        }
    }
    if network::packet_filter(&context.store)? == PacketFilter::None
        && portmap::published(&context.store).is_none()
    {
        eprintln!(
            "qengine: warning: no usable packet filter here: published ports are reserved, but nobody serves them \
             before `qengine portmap start -d`"
        );
    }
    Ok(())
}

/// Cgroup v2 has nothing like v1's `memory.oom_control`: said aloud rather than refused, as docker does.
#[expect(clippy::print_stderr, reason = "a warning beside the answer")]
fn warn_of_what_v2_lacks(options: &mut container::model::Options) {
    if options.resources.oom_kill_disable && Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
    {
        eprintln!(
            "qengine: warning: --oom-kill-disable has no effect: cgroup v2 has no such setting"
        );
        options.resources.oom_kill_disable = false;
    }
}

/// `run -ti sh`: the forebears had one built-in image; here the first word is always an image.
fn no_image(error: anyhow::Error, options: &container::model::Options) -> anyhow::Error {
    let is_a_command = [
        "sh",
        "bash",
        "ash",
        "/bin/sh",
        "/bin/bash",
        "top",
        "ls",
        "stress",
    ]
    .contains(&options.image.as_str());
    if is_a_command && options.command.is_empty() {
        let command = &options.image;
        return anyhow::anyhow!(
            "{command:?} stands where the image belongs, and there is no image of that name; \
             with the basic image it is `qengine run -ti base {command}`"
        );
    }
    error
}

impl Run {
    pub(crate) fn run(mut self, context: &Context) -> Result<ExitCode> {
        let keys = DetachKeys::parse(&self.detach_keys)?;
        let what = self.words.meaning()?;
        if what.interactive && !self.detach {
            self.container.tty = true;
            self.container.interactive = true;
        }
        terminal::require(
            self.container.tty && !self.detach,
            self.container.interactive,
        )?;
        if let Some(file) = &self.cidfile
            && file.exists()
        {
            bail!(
                "the id file {} is there already; remove it first",
                file.display()
            );
        }
        let way = if self.detach {
            Way::RunDetached
        } else {
            Way::RunAttached
        };
        let (detach, cidfile, sig_proxy) = (self.detach, self.cidfile, self.sig_proxy);
        let Created {
            handle,
            lock,
            mut state,
        } = make(
            context,
            &self.pull,
            self.container,
            what.image,
            what.command,
            way,
        )?;
        if let Some(file) = &cidfile {
            std::fs::write(file, handle.id())
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        let streams = if detach {
            Streams::Leave
        } else {
            Streams::Attach
        };
        let started = start_locked(
            &context.store,
            &context.programs,
            &handle,
            &mut state,
            streams,
            &lock,
        );
        drop(lock);
        let connection = match started {
            Ok(connection) => connection,
            Err(error) => {
                if handle.config.options.auto_remove {
                    drop(container::remove::remove(
                        &context.store,
                        &context.programs,
                        &handle,
                        true,
                        container::remove::Volumes::RemoveAnonymous,
                    ));
                }
                return Err(error.into());
            }
        };
        match connection {
            None if detach => {
                say(format_args!("{}", handle.id()))?;
                Ok(ExitCode::SUCCESS)
            }
            connection => stay(
                context,
                &handle,
                (connection.as_ref(), state.monitor),
                keys,
                sig_proxy,
            ),
        }
    }
}

/// Ties the user's streams to the container's until it ends, and answers with its exit code.
pub(super) fn stay(
    context: &Context,
    handle: &Handle,
    (connection, monitor): (Option<&Connection>, Option<Process>),
    detach_keys: DetachKeys,
    sig_proxy: bool,
) -> Result<ExitCode> {
    let options = &handle.config.options;
    let watch = ExitWatch::new(&context.store, handle.id())?;
    let signals = terminal::signals(sig_proxy)?;
    let pass_on = |signal: Signal| {
        if sig_proxy {
            drop(container::stop::kill(
                &context.store,
                &context.programs,
                handle,
                signal,
            ));
        }
    };
    let relay = Relay {
        tty: options.tty,
        input: options.interactive,
        detach_keys: if options.tty {
            detach_keys
        } else {
            DetachKeys::none()
        },
        control: handle.control(&context.store),
        on_signal: &pass_on,
    };
    let ended = match connection {
        Some(connection) => relay.run(connection, &signals)?,
        None => {
            terminal::pass_signals(&signals, handle.state()?.process, &pass_on)?;
            Ended::Closed
        }
    };
    if ended == Ended::Detached {
        std::io::stderr().write_all(b"read escape sequence\n")?;
        return Ok(ExitCode::SUCCESS);
    }
    let code = until_exit(&context.store, handle, &watch, monitor)?;
    cleanup::finish(&context.store, &context.programs, handle)?;
    if !handle.directory().exists() {
        // With `--rm` the exit code was left for us.
        drop(std::fs::remove_file(
            context.store.exits().join(handle.id()),
        ));
    } else if handle
        .live(&context.store)
        .is_ok_and(|(_, live)| live == Live::Removing)
    {
        recover::collect(&context.store, &context.programs, handle.id())?;
    }
    Ok(exit_code(code.unwrap_or(255)))
}
