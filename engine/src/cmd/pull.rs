//! `pull`: an image from a registry, with progress.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use bundle_tools::Digest;
use bundle_tools::image::Platform;
use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use qengine::image::pull::{LayerState, Progress};
use qengine::image::{Image, PullOptions, Reference, pull};
use qengine::store::Store;

use crate::output::say;

/// Fetch an image from a registry.
#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// The image: [HOST[:PORT]/]NAME[:TAG|@DIGEST]
    #[arg(value_name = "IMAGE", required_unless_present = "img")]
    image: Option<String>,
    /// The same, as a flag
    #[arg(long, value_name = "IMAGE", conflicts_with = "image")]
    img: Option<String>,
    /// Print only the image's name
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    registry: RegistryFlags,
}

/// How to talk to registries.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct RegistryFlags {
    /// Platform to pull for, such as linux/arm64 [default: this machine's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub(crate) platform: Option<String>,
    /// Insist on https with a valid certificate; false allows any certificate, and http
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    tls_verify: Option<bool>,
    /// Directory of certificate authorities (*.crt) to trust
    #[arg(long, value_name = "DIR")]
    cert_dir: Option<PathBuf>,
    /// User name and password for the registry
    #[arg(long, value_name = "USER:PASSWORD")]
    creds: Option<String>,
    /// File of credentials instead of docker's and podman's usual ones
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
}

impl RegistryFlags {
    pub(crate) fn options(&self) -> Result<PullOptions> {
        let platform = self
            .platform
            .as_deref()
            .map(str::parse::<Platform>)
            .transpose()?;
        let credentials = match &self.creds {
            Some(creds) => match creds.split_once(':') {
                Some((user, password)) if !user.is_empty() => {
                    Some((user.to_owned(), password.to_owned()))
                }
                _ => bail!("--creds: expected USER:PASSWORD"),
            },
            None => None,
        };
        Ok(PullOptions {
            platform,
            tls_verify: self.tls_verify,
            cert_dir: self.cert_dir.clone(),
            credentials,
            auth_file: self.authfile.clone(),
        })
    }
}

impl Pull {
    pub(crate) fn run(self, store: &Store) -> Result<ExitCode> {
        let text = self.image.or(self.img).context("no image given")?;
        let reference: Reference = text.parse()?;
        let options = self.registry.options()?;
        let shown = Shown::new(self.quiet);
        if !self.quiet {
            announce(&text, &reference);
        }
        let pulled = pull(store, &reference, &options, &shown)?;
        if !self.quiet {
            say(format_args!("Digest: {}", pulled.digest))?;
            say(format_args!("{}", status(&reference, pulled.newer)))?;
        }
        say(format_args!("{reference}"))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Pulls what a `run` or `create` misses. All words about it go to standard error, which is not the container's.
pub(crate) fn pull_missing(
    store: &Store,
    text: &str,
    flags: &RegistryFlags,
    quiet: bool,
) -> Result<Image> {
    let reference: Reference = text.parse()?;
    let options = flags.options()?;
    if !quiet {
        eprintln!("Unable to find image '{}' locally", reference.familiar());
        announce(text, &reference);
    }
    let pulled = pull(store, &reference, &options, &Shown::new(quiet))?;
    if !quiet {
        eprintln!("Digest: {}", pulled.digest);
        eprintln!("{}", status(&reference, pulled.newer));
    }
    Ok(pulled.image)
}

pub(crate) fn announce(text: &str, reference: &Reference) {
    let Some(tag) = reference.tag() else {
        return eprintln!(
            "{}: Pulling from {}",
            reference.familiar(),
            reference.repository()
        );
    };
    if !text.ends_with(&format!(":{tag}")) {
        eprintln!("Using default tag: {tag}");
    }
    eprintln!("{tag}: Pulling from {}", reference.repository());
}

fn status(reference: &Reference, newer: bool) -> String {
    let name = reference.familiar();
    match newer {
        true => format!("Status: Downloaded newer image for {name}"),
        false => format!("Status: Image is up to date for {name}"),
    }
}

/// Progress as bars on a terminal, as lines elsewhere.
pub(crate) struct Shown {
    quiet: bool,
    /// `None` where standard error is no terminal.
    bars: Option<MultiProgress>,
    layers: Mutex<HashMap<Digest, Layer>>,
}

#[derive(Default)]
struct Layer {
    bar: Option<ProgressBar>,
    said: &'static str,
}

impl Shown {
    pub(crate) fn new(quiet: bool) -> Shown {
        Shown {
            quiet,
            bars: (!quiet && std::io::stderr().is_terminal()).then(MultiProgress::new),
            layers: Mutex::default(),
        }
    }
}

impl Progress for Shown {
    fn layer(&self, digest: &Digest, state: LayerState<'_>) {
        if self.quiet {
            return;
        }
        let words = match state {
            LayerState::Waiting => "Pulling fs layer",
            LayerState::Exists => "Already exists",
            LayerState::Downloading { .. } => "Downloading",
            LayerState::Retrying(_) => "Retrying",
            LayerState::Extracting => "Extracting",
            LayerState::Complete => "Pull complete",
        };
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let layer = layers.entry(digest.clone()).or_default();
        if let Some(bars) = &self.bars {
            let bar = layer.bar.get_or_insert_with(|| bars.add(new_bar(digest)));
            show(bar, words, state);
        } else if layer.said != words {
            layer.said = words;
            match state {
                LayerState::Downloading { .. } => {}
                LayerState::Extracting => eprintln!("{}: Download complete", digest.short()),
                LayerState::Retrying(reason) => eprintln!("{}: Retrying: {reason}", digest.short()),
                _ => eprintln!("{}: {words}", digest.short()),
            }
        }
    }

    fn warning(&self, message: &str) {
        match &self.bars {
            Some(bars) => bars.suspend(|| eprintln!("WARNING: {message}")),
            None => eprintln!("WARNING: {message}"),
        }
    }
}

fn new_bar(digest: &Digest) -> ProgressBar {
    let bar = ProgressBar::new(0);
    bar.set_prefix(digest.short().to_owned());
    bar.set_style(words_only());
    bar
}

fn show(bar: &ProgressBar, words: &'static str, state: LayerState<'_>) {
    match state {
        LayerState::Downloading { done, total } => {
            if bar.length() != Some(total) {
                bar.set_length(total);
                bar.set_style(with_bar());
                bar.set_message(words);
            }
            bar.set_position(done);
        }
        LayerState::Retrying(reason) => bar.set_message(format!("{words}: {reason}")),
        LayerState::Exists | LayerState::Complete => {
            bar.set_style(words_only());
            bar.finish_with_message(words);
        }
        LayerState::Waiting | LayerState::Extracting => {
            bar.set_style(words_only());
            bar.set_message(words);
            bar.tick();
        }
    }
}

fn words_only() -> ProgressStyle {
    style("{prefix}: {msg}")
}

fn with_bar() -> ProgressStyle {
    style("{prefix}: {msg} [{bar:40}] {decimal_bytes}/{decimal_total_bytes}").progress_chars("=> ")
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
