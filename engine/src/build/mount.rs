//! `RUN --mount`: files that a command sees and that are not in its layer.
//!
//! A bound directory is never the original. Out of another stage or image it is that one's root file system mounted
//! once more, with a layer on top that is thrown away; out of the context it is a copy without what the ignore file
//! hides. So nothing can change underneath while the command runs (CVE-2024-11218), no link leads to the host
//! (CVE-2024-1753), and a writable mount changes nobody's files. Caches are directories of the store, named by a digest
//! of their id (CVE-2024-9675).

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use bundle_tools::{Digest, rooted};

use super::cache::{self, Key};
use super::copy::{Manner, Owner, Target};
use super::digest;
use super::ignore::Ignore;
use super::instruction::{Mount, MountKind, Sharing};
use super::plan::Origin;
use super::stage::{Builder, State};
use super::tree::Tree;
use super::{Error, FileContext, Result, config};
use crate::container::model::{Volume, VolumeSource};
use crate::container::step::Step;
use crate::store::{Lock, make_dir};

/// Where the copy of the context's files lies in its container.
const COPY: &str = "files";

/// What the mounts of one command come to. Dropping it takes away what was made for them.
#[derive(Default)]
pub(super) struct Mounts<'b> {
    pub(super) volumes: Vec<Volume>,
    pub(super) tmpfs: Vec<String>,
    /// Variables with secrets.
    pub(super) env: Vec<(String, String)>,
    /// Absolute paths that are mounted over.
    pub(super) targets: Vec<String>,
    /// Caches that are shared with other commands, held.
    caches: BTreeMap<String, Lock>,
    _sources: Vec<Step<'b>>,
    _locks: Vec<Lock>,
}

impl<'b> Builder<'b> {
    /// Adds to a key what the files of mounts are. What is in caches, and secrets, make no difference: that is their
    /// point.
    pub(super) fn add_mounts(
        &mut self,
        key: &mut Key,
        state: &State,
        mounts: &[Mount],
        stage: usize,
    ) -> Result<()> {
        for mount in mounts {
            key.add(format!("{mount:?}").as_bytes());
            if mount.kind != MountKind::Bind {
                continue;
            }
            let source = state.expand(&mount.source, self.plan.escape)?;
            key.add(source.as_bytes());
            match self.plan.origin_of(mount.from.as_deref(), stage) {
                Origin::Context => {
                    let tree = self.context.as_ref().ok_or(Error::NoContext)?;
                    for found in tree.find(&source)? {
                        let files = &mut self.digests;
                        let digest = digest::of_source(tree, &found, &Ignore::default(), files)?;
                        key.add(digest.as_str().as_bytes());
                    }
                }
                origin => {
                    let chain = self.state_of(&origin)?.chain();
                    key.add(chain.map(String::from).unwrap_or_default().as_bytes());
                }
            }
        }
        Ok(())
    }

    /// Makes what is to be mounted.
    pub(super) fn prepare_mounts(
        &mut self,
        state: &State,
        mounts: &[Mount],
        stage: usize,
    ) -> Result<Mounts<'b>> {
        let mut made = Mounts {
            caches: self.lock_caches(state, mounts)?,
            ..Mounts::default()
        };
        for mount in mounts {
            let target = state.expand(&mount.target, self.plan.escape)?;
            let is_mounted = !target.is_empty();
            let target = config::absolute(state.container(), &target);
            if target == "/" && is_mounted {
                return Err(Error::Invalid("RUN --mount: the target is /".to_owned()));
            }
            match &mount.kind {
                MountKind::Tmpfs => {
                    let size = mount.size.as_ref().map(|size| format!(",size={size}"));
                    made.tmpfs
                        .push(format!("{target}:exec{}", size.unwrap_or_default()));
                }
                MountKind::Cache => self.cache_mount(mount, &target, &mut made)?,
                MountKind::Secret { env } => {
                    self.secret_mount(mount, env.as_deref(), &target, &mut made)?;
                }
                MountKind::Bind => {
                    let source = state.expand(&mount.source, self.plan.escape)?;
                    self.bind_mount(mount, (&source, &target), stage, &mut made)?;
                }
            }
            if is_mounted {
                made.targets.push(target);
            }
        }
        Ok(made)
    }

    fn bind_mount(
        &mut self,
        mount: &Mount,
        (source, target): (&str, &str),
        stage: usize,
        made: &mut Mounts<'b>,
    ) -> Result<()> {
        let origin = self.plan.origin_of(mount.from.as_deref(), stage);
        let (step, path) = if origin == Origin::Context {
            let step = self.mount(&State::default())?;
            let tree = self.context.as_ref().ok_or(Error::NoContext)?;
            copy_context(tree, source, &step)?;
            (step, COPY.as_bytes().to_vec())
        } else {
            let from = self.state_of(&origin)?;
            let step = self.mount(&from)?;
            let root = fs::File::open(step.root()).doing("open", &step.root())?;
            let found = rooted::walk(&root, source.as_bytes()).map_err(|_| Error::NoSource {
                source_path: source.to_owned(),
                tree: "the stage or image it is mounted from".into(),
                reason: "",
            })?;
            (step, found.path)
        };
        let path = step.root().join(String::from_utf8_lossy(&path).as_ref());
        made.volumes
            .push(volume(&path, target, mount.read_only.unwrap_or(true))?);
        made._sources.push(step);
        Ok(())
    }

    /// Locks the caches that a command shares with others: each once, and in the order of their names, so that no two
    /// builds wait for each other.
    fn lock_caches(&self, state: &State, mounts: &[Mount]) -> Result<BTreeMap<String, Lock>> {
        let mut wanted: BTreeMap<String, bool> = BTreeMap::new();
        for mount in mounts {
            if matches!(mount.kind, MountKind::Cache) && mount.sharing != Sharing::Private {
                let target = state.expand(&mount.target, self.plan.escape)?;
                let name = cache_name(mount, &config::absolute(state.container(), &target));
                *wanted.entry(name).or_default() |= mount.sharing == Sharing::Locked;
            }
        }
        let caches = cache::mounts(self.store);
        let lock = |(name, alone): (String, bool)| {
            let path = caches.join(&name).join("lock");
            loop {
                make_dir(&caches.join(&name))?;
                let lock = match alone {
                    true => Lock::exclusive(&path)?,
                    false => Lock::shared(&path)?,
                };
                // Not one that was pruned while we waited for it.
                if lock.is_at(&path) {
                    return Ok((name, lock));
                }
            }
        };
        wanted.into_iter().map(lock).collect()
    }

    fn cache_mount(&self, mount: &Mount, target: &str, made: &mut Mounts<'b>) -> Result<()> {
        let name = cache_name(mount, target);
        let caches = cache::mounts(self.store);
        let directory = if made.caches.contains_key(&name) && mount.sharing != Sharing::Private {
            caches.join(name)
        } else {
            let (directory, lock) = free_cache(&caches, &name)?;
            made._locks.push(lock);
            directory
        };
        let data = directory.join("data");
        if !data.exists() {
            DirBuilder::new()
                .mode(0o700)
                .recursive(true)
                .create(&data)
                .doing("make", &data)?;
            std::os::unix::fs::chown(&data, Some(mount.uid), Some(mount.gid))
                .doing("set the owner of", &data)?;
            let mode = fs::Permissions::from_mode(mount.mode.unwrap_or(0o755));
            fs::set_permissions(&data, mode).doing("set the mode of", &data)?;
        }
        let read_only = mount.read_only.unwrap_or(false);
        made.volumes.push(volume(&data, target, read_only)?);
        Ok(())
    }

    /// A secret lies in a directory of `<run>` while the command runs, which is memory on most machines.
    fn secret_mount(
        &self,
        mount: &Mount,
        env: Option<&str>,
        target: &str,
        made: &mut Mounts<'b>,
    ) -> Result<()> {
        let id = mount.id.as_deref().unwrap_or_default();
        let Some(secret) = self.options.secrets.get(id) else {
            if mount.required {
                return Err(Error::Invalid(format!(
                    "secret {id} is required, and --secret id={id},src=FILE was not given"
                )));
            }
            return Ok(());
        };
        if let Some(name) = env {
            let text = String::from_utf8(secret.clone()).map_err(|_| {
                Error::Invalid(format!("secret {id} is no text, as a variable has to be"))
            })?;
            made.env.push((name.to_owned(), text));
        }
        if mount.target.is_empty() {
            return Ok(());
        }
        let step = self.mount(&State::default())?;
        let path = step.private_directory()?.join("secret");
        let mut file = fs::File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .doing("make", &path)?;
        file.write_all(secret).doing("write", &path)?;
        std::os::unix::fs::fchown(&file, Some(mount.uid), Some(mount.gid))
            .doing("set the owner of", &path)?;
        let mode = fs::Permissions::from_mode(mount.mode.unwrap_or(0o400));
        file.set_permissions(mode).doing("set the mode of", &path)?;
        made.volumes.push(volume(&path, target, true)?);
        made._sources.push(step);
        Ok(())
    }
}

/// A cache of that id that nobody uses.
/// The name of a cache's directory: nothing of what was typed gets into a path.
fn cache_name(mount: &Mount, target: &str) -> String {
    let id = mount.id.as_deref().unwrap_or(target);
    Digest::sha256_of(id.as_bytes()).hex().to_owned()
}

fn free_cache(caches: &Path, name: &str) -> Result<(PathBuf, Lock)> {
    for number in 0_u32.. {
        let directory = caches.join(format!("{name}-{number}"));
        make_dir(&directory)?;
        let path = directory.join("lock");
        if let Some(lock) = Lock::try_exclusive(&path)?
            && lock.is_at(&path)
        {
            return Ok((directory, lock));
        }
    }
    unreachable!("some number is free")
}

/// Copies what the build may see of the context.
fn copy_context(tree: &Tree, source: &str, step: &Step<'_>) -> Result<()> {
    let manner = Manner {
        owner: Owner::Ids(0, 0),
        mode: None,
        exclude: Ignore::default(),
        devices: false,
    };
    let found = tree.find(source)?;
    let [found] = &found[..] else {
        return Err(Error::Invalid(format!(
            "RUN --mount: source={source} fits several files"
        )));
    };
    let mut target = Target::open(&step.root())?;
    target.copy(tree, found, COPY.as_bytes(), &manner)?;
    target.finish()
}

fn volume(path: &Path, target: &str, read_only: bool) -> Result<Volume> {
    let path = path
        .to_str()
        .ok_or_else(|| Error::Invalid(format!("{} is not UTF-8", path.display())))?;
    Ok(Volume {
        source: VolumeSource::Path(path.to_owned()),
        destination: target.to_owned(),
        read_only,
        options: Vec::new(),
        mount: None,
    })
}
