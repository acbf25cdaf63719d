//! `pull`: an image from a registry, with progress.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bundle_tools::image::Platform;
use clap::Args;
use qengine::image::pull::tags;
use qengine::image::{self, Access, Image, PullOptions, Reference, pull};
use qengine::store::Store;

use super::progress::{Shown, Way};
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
    /// Fetch all tags of the repository
    #[arg(short, long)]
    all_tags: bool,
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
    #[command(flatten)]
    access: AccessFlags,
}

/// Who we are to registries, and how far they are trusted.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct AccessFlags {
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
        Ok(PullOptions {
            platform,
            access: self.access.access()?,
        })
    }
}

impl AccessFlags {
    pub(crate) fn access(&self) -> Result<Access> {
        let credentials = match &self.creds {
            Some(creds) => match creds.split_once(':') {
                Some((user, password)) if !user.is_empty() => {
                    Some((user.to_owned(), password.to_owned()))
                }
                _ => bail!("--creds: expected USER:PASSWORD"),
            },
            None => None,
        };
        Ok(Access {
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
        if self.all_tags {
            let named = reference.digest().is_some()
                || text.ends_with(&format!(":{}", reference.tag().unwrap_or_default()));
            if named {
                bail!("tag can't be used with --all-tags/-a");
            }
            for tag in tags(&reference, &options.access)? {
                pull(store, &tag, &options, &Shown::new(Way::Pull, self.quiet))?;
                say(format_args!("{tag}"))?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        let shown = Shown::new(Way::Pull, self.quiet);
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
    // Not where it is only asked for anew (`--pull always`).
    if !quiet && image::find(store, text)?.is_none() {
        eprintln!("Unable to find image '{}' locally", reference.familiar());
        announce(text, &reference);
    }
    let pulled = pull(store, &reference, &options, &Shown::new(Way::Pull, quiet))?;
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
