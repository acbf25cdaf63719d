//! `push`: an image into a registry, with progress.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use qengine::image::{PushOptions, Reference, list, push, require};
use qengine::store::Store;

use super::progress::{Shown, Way};
use super::pull::AccessFlags;
use crate::output::say;

/// Send an image to a registry.
#[derive(Debug, Args)]
#[command(after_help = "\
The image goes where its own name says, or to DESTINATION. What the registry has already is not sent again.

  qengine tag web localhost:5000/web:1.0
  qengine push localhost:5000/web:1.0
  qengine push web registry.example.org/team/web:1.0")]
pub(crate) struct Push {
    /// The image
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Where to, when that is not the image's own name: [HOST[:PORT]/]NAME[:TAG]
    #[arg(value_name = "DESTINATION", conflicts_with = "all_tags")]
    destination: Option<String>,
    /// Send all tags that the repository has here
    #[arg(short, long)]
    all_tags: bool,
    /// Print only the name
    #[arg(short, long)]
    quiet: bool,
    /// Write the digest of what was pushed into this file
    #[arg(long, value_name = "FILE", conflicts_with = "all_tags")]
    digestfile: Option<PathBuf>,
    /// Accepted for docker's sake: nothing is signed
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true)]
    disable_content_trust: Option<String>,
    #[command(flatten)]
    access: AccessFlags,
}

impl Push {
    pub(crate) fn run(self, store: &Store) -> Result<ExitCode> {
        let _ = &self.disable_content_trust;
        let options = PushOptions {
            access: self.access.access()?,
        };
        if self.all_tags {
            for tag in self.tags(store)? {
                self.push(store, &tag.to_string(), &tag, &options)?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        let destination = self.destination.as_deref().unwrap_or(&self.image);
        // podman and skopeo want the kind of place in front.
        let destination = destination.strip_prefix("docker://").unwrap_or(destination);
        let reference: Reference = destination.parse()?;
        self.push(store, &self.image, &reference, &options)?;
        Ok(ExitCode::SUCCESS)
    }

    fn push(
        &self,
        store: &Store,
        source: &str,
        destination: &Reference,
        options: &PushOptions,
    ) -> Result<()> {
        // A mistyped name is no push that has begun.
        require(store, source)?;
        if !self.quiet {
            let name = destination.name();
            say(format_args!("The push refers to repository [{name}]"))?;
        }
        let pushed = push(
            store,
            source,
            destination,
            options,
            &Shown::new(Way::Push, self.quiet),
        )?;
        if let Some(file) = &self.digestfile {
            std::fs::write(file, pushed.digest.as_str())
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        if self.quiet {
            say(format_args!("{destination}"))?;
        } else {
            say(format_args!(
                "{}: digest: {} size: {}",
                destination.tag().unwrap_or_default(),
                pushed.digest,
                pushed.size
            ))?;
        }
        Ok(())
    }

    /// All names that the repository has here.
    fn tags(&self, store: &Store) -> Result<Vec<Reference>> {
        let wanted: Reference = self.image.parse()?;
        if self
            .image
            .ends_with(&format!(":{}", wanted.tag().unwrap_or("@")))
        {
            bail!("tag can't be used with --all-tags/-a");
        }
        let listed = list(store)?;
        let names = listed.iter().flat_map(|listed| &listed.image.names);
        let mut tags: Vec<Reference> = names
            .filter_map(|name| name.parse::<Reference>().ok())
            .filter(|name| name.name() == wanted.name() && name.digest().is_none())
            .collect();
        tags.sort();
        if tags.is_empty() {
            bail!(
                "an image does not exist locally with the tag: {}",
                self.image
            );
        }
        Ok(tags)
    }
}
