//! `qbundle unpack`: an image of a layout becomes a bundle.

use std::fs::{self, DirBuilder, File};
use std::io::BufReader;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use bundle_tools::Digest;
use bundle_tools::digest::{HashReader, Hasher};
use bundle_tools::generate::{self, Overrides};
use bundle_tools::image::{Descriptor, Platform};
use bundle_tools::layer::{apply, compression};
use bundle_tools::layout::{Image, Layout};

use super::Hint;
use super::source::{Record, Source};

#[derive(Debug, clap::Args)]
pub(crate) struct Flags {
    /// The image: a layout directory, and the image's name in it
    #[arg(long, value_name = "LAYOUT[:NAME]")]
    image: Source,
    /// The platform, where the image has several; this machine's by default
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<Platform>,
    /// Make a bundle that belongs to the caller: no owners, no devices
    #[arg(long)]
    rootless: bool,
    /// Add the default seccomp profile
    #[arg(long)]
    seccomp: bool,
    /// Mount a temporary file system on each of the image's volumes
    #[arg(long)]
    tmpfs_volumes: bool,
    /// The directory to make
    #[arg(value_name = "BUNDLE")]
    bundle: PathBuf,
}

pub(crate) fn run(flags: &Flags) -> anyhow::Result<ExitCode> {
    if !flags.rootless && !rustix::process::geteuid().is_root() {
        return Err(Hint::NotRoot.into());
    }
    let (layout, image) = flags.image.open(flags.platform.as_ref())?;
    let made = Made::directory(&flags.bundle)?;
    fill(flags, &layout, &image)?;
    made.keep();
    Ok(ExitCode::SUCCESS)
}

fn fill(flags: &Flags, layout: &Layout, image: &Image) -> anyhow::Result<()> {
    let rootfs = flags.bundle.join("rootfs");
    unpack_layers(layout, image, &rootfs, &apply_options(flags.rootless))?;
    let overrides = Overrides {
        terminal: true,
        rootless: flags.rootless,
        seccomp: flags.seccomp,
        volumes: flags.tmpfs_volumes,
        ..Overrides::default()
    };
    let spec = generate::from_image(&image.config, &rootfs, &overrides)
        .context("make the runtime configuration")?;
    let config = flags.bundle.join("config.json");
    fs::write(&config, generate::to_json(&spec)?)
        .with_context(|| format!("write {}", config.display()))?;
    let path = layout.path();
    Record {
        layout: fs::canonicalize(path).with_context(|| format!("resolve {}", path.display()))?,
        name: image.name.clone(),
        manifest: image.descriptor.clone(),
        rootless: flags.rootless,
    }
    .write(&flags.bundle)
}

/// How a bundle's layers are applied.
pub(super) fn apply_options(rootless: bool) -> apply::Options {
    apply::Options {
        ownership: !rootless,
        ..apply::Options::default()
    }
}

/// Applies all layers of an image to a directory that this makes.
pub(super) fn unpack_layers(
    layout: &Layout,
    image: &Image,
    rootfs: &Path,
    options: &apply::Options,
) -> anyhow::Result<()> {
    let create = || -> std::io::Result<File> {
        fs::create_dir(rootfs)?;
        // Whatever the umask: users other than root must get into the container's root.
        fs::set_permissions(rootfs, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        File::open(rootfs)
    };
    let root = create().with_context(|| format!("create {}", rootfs.display()))?;
    let layers = image
        .manifest
        .layers
        .iter()
        .zip(&image.config.rootfs.diff_ids);
    for (layer, diff_id) in layers {
        unpack_layer(layout, layer, diff_id, &root, options)
            .with_context(|| format!("unpack layer {}", layer.digest))?;
    }
    Ok(())
}

/// Applies one layer, hashing it in passing as it is stored and as it is unpacked.
fn unpack_layer(
    layout: &Layout,
    layer: &Descriptor,
    diff_id: &Digest,
    root: &File,
    options: &apply::Options,
) -> anyhow::Result<()> {
    let file = layout.open_blob(&layer.digest)?;
    let mut stored = HashReader::with(file, Hasher::like(&layer.digest));
    let decoder = compression::decoder(BufReader::with_capacity(128 << 10, &mut stored))?;
    let mut unpacked = HashReader::with(decoder, Hasher::like(diff_id));
    let applied = apply::apply(&mut unpacked, root, options);
    let (found, _) = unpacked.finish();
    // A layer that was tampered with may well fail to unpack: the digest is the better reason.
    stored.drain().context("read the layer")?;
    check("content", &layer.digest, &stored.finish().0)?;
    applied?;
    check("unpacked content", diff_id, &found)
}

fn check(what: &str, expected: &Digest, found: &Digest) -> anyhow::Result<()> {
    ensure!(
        expected == found,
        "its {what} is {found}, expected {expected}"
    );
    Ok(())
}

/// A directory that is removed again, with what was put into it, unless kept.
pub(super) struct Made {
    path: PathBuf,
    existed: bool,
    kept: bool,
}

impl Made {
    /// Makes the directory; an empty one that is there will do.
    pub(super) fn directory(path: &Path) -> anyhow::Result<Made> {
        let created = DirBuilder::new().mode(0o700).create(path);
        let existed = match created {
            Ok(()) => false,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                let mut entries =
                    fs::read_dir(path).with_context(|| format!("list {}", path.display()))?;
                if entries.next().is_some() {
                    bail!("{} exists and is not empty", path.display());
                }
                true
            }
            Err(error) => return Err(error).with_context(|| format!("create {}", path.display())),
        };
        Ok(Made {
            path: path.to_owned(),
            existed,
            kept: false,
        })
    }

    pub(super) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        // The failure that brought us here is the one to report.
        if !self.existed {
            let _ = fs::remove_dir_all(&self.path);
            return;
        }
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            let path = entry.path();
            let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
        }
    }
}
