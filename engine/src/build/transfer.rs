//! `COPY`, `ADD` and `WORKDIR`: files and directories come into a stage.

use std::fs::File;
use std::io::BufReader;
use std::os::fd::AsFd;

use bundle_tools::layer::apply::{self, apply};
use bundle_tools::layer::compression::{self, decoder};
use bundle_tools::{rooted, user};
use rustix::fs::{FileType, OFlags};

use super::cache::Key;
use super::copy::{Manner, Owner, Target};
use super::digest;
use super::fetch::{self, Fetched};
use super::ignore::Ignore;
use super::instruction::Copy;
use super::lines::Heredoc;
use super::plan::Origin;
use super::stage::{Builder, State};
use super::tree::{Found, Tree};
use super::word::{self, Quotes};
use super::{Error, FileContext, Result, config};
use crate::container::step::Step;

/// Bytes of an archive's first block.
const BLOCK: usize = 512;

/// An instruction with its variables replaced.
struct Transfer {
    sources: Vec<String>,
    files: Vec<(String, String)>,
    fetched: Vec<Fetched>,
    checksum: Option<String>,
    /// Relative to the root; empty for the root itself.
    destination: Vec<u8>,
    /// What is copied gets into the destination, not in its place.
    into: bool,
    chown: Option<String>,
    mode: Option<u32>,
    exclude: Ignore,
    parents: bool,
    unpack: bool,
}

impl Transfer {
    /// The instruction as the history has it.
    fn text(&self, keyword: &str, copy: &Copy) -> String {
        let mut words = vec![keyword.to_owned()];
        if let Some(from) = &copy.from {
            words.push(format!("--from={from}"));
        }
        if let Some(chown) = &self.chown {
            words.push(format!("--chown={chown}"));
        }
        if let Some(mode) = self.mode {
            words.push(format!("--chmod={mode:o}"));
        }
        words.extend(self.files.iter().map(|(name, _)| format!("<<{name}")));
        words.extend(self.sources.iter().cloned());
        words.push(copy.destination.clone());
        words.join(" ")
    }
}

impl<'b> Builder<'b> {
    pub(super) fn copy(
        &mut self,
        state: &mut State,
        keyword: &'static str,
        copy: &Copy,
        stage: usize,
        is_last: bool,
    ) -> Result<()> {
        let mut transfer = self.transfer(state, keyword, copy)?;
        let text = transfer.text(keyword, copy);
        self.fetch(keyword, &mut transfer)?;
        let origin = self.plan.origin(copy, stage);
        let mut key = Key::new(state.chain().as_ref(), &state.config);
        key.add(text.as_bytes());
        key.add(
            format!(
                "{:?} {:?}",
                copy.exclude,
                (transfer.parents, transfer.unpack)
            )
            .as_bytes(),
        );
        key.add(&transfer.destination);
        for (_, content) in &transfer.files {
            key.add(content.as_bytes());
        }
        for fetched in &transfer.fetched {
            key.add(fetched.digest.as_str().as_bytes());
        }
        match origin {
            Origin::Context => {
                self.add_digests(&mut key, &transfer)?;
                self.layer(state, (key, text), is_last, |builder, state| {
                    let step = builder.mount(state)?;
                    let tree = builder.context.as_ref();
                    carry_out(&transfer, tree, &step, Owner::Ids(0, 0))?;
                    Ok(Some(step))
                })
            }
            origin => {
                let from = self.state_of(&origin)?;
                self.copy_from(state, (key, text), is_last, &transfer, &from)
            }
        }
    }

    /// Copies out of another stage or image. What is in it follows from its chain id.
    fn copy_from(
        &mut self,
        state: &mut State,
        (mut key, text): (Key, String),
        is_last: bool,
        transfer: &Transfer,
        from: &State,
    ) -> Result<()> {
        key.add(
            from.chain()
                .map(String::from)
                .unwrap_or_default()
                .as_bytes(),
        );
        self.layer(state, (key, text), is_last, |builder, state| {
            let source = builder.mount(from)?;
            let tree = Tree::open(&source.root(), Ignore::default())?;
            let step = builder.mount(state)?;
            carry_out(transfer, Some(&tree), &step, Owner::Source)
                .map_err(|error| name_tree(error, "the stage or image it is copied from"))?;
            Ok(Some(step))
        })
    }

    /// Fetches the sources that are addresses.
    fn fetch(&self, keyword: &str, transfer: &mut Transfer) -> Result<()> {
        let (addresses, sources) = std::mem::take(&mut transfer.sources)
            .into_iter()
            .partition(|source| fetch::is_address(source));
        transfer.sources = sources;
        for address in addresses {
            if keyword != "ADD" {
                return Err(Error::Invalid(format!(
                    "{keyword} takes files of the context; ADD fetches {address}"
                )));
            }
            let checksum = transfer.checksum.as_deref();
            let go_on = || self.give_up_if_asked();
            transfer
                .fetched
                .push(fetch::fetch(self.store, &address, checksum, &go_on)?);
        }
        Ok(())
    }

    fn add_digests(&mut self, key: &mut Key, transfer: &Transfer) -> Result<()> {
        for source in &transfer.sources {
            let tree = self.context.as_ref().ok_or(Error::NoContext)?;
            for found in tree.find(source)? {
                let digest = digest::of_source(tree, &found, &transfer.exclude, &mut self.digests)?;
                key.add(digest.as_str().as_bytes());
            }
        }
        Ok(())
    }

    fn transfer(&self, state: &State, keyword: &str, copy: &Copy) -> Result<Transfer> {
        let escape = self.plan.escape;
        let expand = |text: &String| state.expand(text, escape);
        let all = |texts: &[String]| texts.iter().map(expand).collect::<Result<Vec<String>>>();
        let destination = expand(&copy.destination)?;
        let into = destination.ends_with('/')
            || destination == "."
            || destination.ends_with("/.")
            || destination == "..";
        let sources = all(&copy.sources)?;
        let exclude = all(&copy.exclude)?;
        let whole = config::absolute(state.container(), &destination);
        let chown = copy.chown.as_ref().map(expand).transpose()?;
        let mode = copy.chmod.as_ref().map(expand).transpose()?;
        let mode = mode.map(|text| octal(keyword, &text)).transpose()?;
        let files = copy.heredocs.iter().map(|it| self.file(state, it));
        Ok(Transfer {
            files: files.collect::<Result<_>>()?,
            fetched: Vec::new(),
            checksum: copy.checksum.as_ref().map(expand).transpose()?,
            destination: whole.trim_start_matches('/').as_bytes().to_vec(),
            into: into || whole == "/",
            chown,
            mode,
            exclude: Ignore::of(exclude.iter().map(String::as_str)),
            parents: copy.parents,
            unpack: keyword == "ADD" && copy.unpack != Some(false),
            sources,
        })
    }

    fn file(&self, state: &State, heredoc: &Heredoc) -> Result<(String, String)> {
        let content = if heredoc.expand {
            let lookup = state.lookup();
            word::expand_with(&heredoc.content, self.plan.escape, Quotes::Keep, &*lookup)
                .map_err(|error| Error::Invalid(format!("heredoc {}: {error}", heredoc.name)))?
        } else {
            heredoc.content.clone()
        };
        Ok((heredoc.name.clone(), content))
    }

    /// `WORKDIR`: a setting, and the directory itself where it is missing.
    pub(super) fn workdir(&mut self, state: &mut State, path: &str, is_last: bool) -> Result<()> {
        let whole = config::absolute(state.container(), path);
        let text = format!("WORKDIR {whole}");
        let mut key = Key::new(state.chain().as_ref(), &state.config);
        key.add(text.as_bytes());
        let made = whole.clone();
        self.layer(state, (key, text), is_last, |builder, state| {
            let step = builder.mount(state)?;
            let target = Target::open(&step.root())?;
            target.directory(made.trim_start_matches('/').as_bytes(), (0, 0))?;
            Ok(Some(step))
        })?;
        state.config.config.working_dir = whole;
        Ok(())
    }
}

/// Messages name the tree as the user knows it, not by where it happens to be mounted.
fn name_tree(error: Error, name: &str) -> Error {
    match error {
        Error::NoSource {
            source_path,
            reason,
            ..
        } => Error::NoSource {
            source_path,
            tree: name.into(),
            reason,
        },
        other => other,
    }
}

fn octal(keyword: &str, text: &str) -> Result<u32> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|&mode| mode <= 0o7777)
        .ok_or_else(|| {
            Error::Invalid(format!(
                "{keyword} --chmod={text}: expected an octal mode such as 755"
            ))
        })
}

/// Writes everything into the mounted root of a step.
fn carry_out(
    transfer: &Transfer,
    tree: Option<&Tree>,
    step: &Step<'_>,
    owner: Owner,
) -> Result<()> {
    let root = step.root();
    let owner = match &transfer.chown {
        None => owner,
        Some(chown) => {
            let found = user::resolve_in(&root, chown)
                .map_err(|error| Error::Invalid(format!("--chown={chown}: {error}")))?;
            // A bare number stands for user and group both.
            match chown.parse() {
                Ok(id) => Owner::Ids(id, id),
                Err(_) => Owner::Ids(found.uid, found.gid),
            }
        }
    };
    let manner = Manner {
        devices: owner == Owner::Source,
        owner,
        mode: transfer.mode,
        exclude: transfer.exclude.clone(),
    };
    let mut target = Target::open(&root)?;
    let mut found = Vec::new();
    for source in &transfer.sources {
        let tree = tree.ok_or(Error::NoContext)?;
        found.extend(tree.find(source)?);
    }
    let several = found.len() + transfer.files.len() + transfer.fetched.len() > 1;
    let destination = &transfer.destination;
    let is_there = target.is_directory(destination);
    if several && !transfer.into && !is_there && !transfer.parents {
        return Err(Error::Destination {
            path: format!("/{}", String::from_utf8_lossy(destination)),
            reason: "is to take several files: end it with / to make it a directory",
        });
    }
    let into = transfer.into || is_there || transfer.parents;
    let within = |name: &[u8]| {
        if into {
            super::tree::join(destination, name)
        } else {
            destination.clone()
        }
    };
    for (name, content) in &transfer.files {
        let path = within(name.as_bytes());
        target.write(&mut content.as_bytes(), 0o644, None, &path, &manner)?;
    }
    for fetched in &transfer.fetched {
        let name = match fetched.name() {
            Some(name) => name,
            None if !into => "",
            None => {
                return Err(Error::Invalid(format!(
                    "{} has no file name: give the file a name at the destination",
                    fetched.address
                )));
            }
        };
        let path = within(name.as_bytes());
        let mut content = &fetched.content;
        // As docker has it: for root alone, and as old as the server says.
        target.write(&mut content, 0o600, fetched.modified, &path, &manner)?;
    }
    if let Some(tree) = tree {
        for found in &found {
            if transfer.unpack && unpack(found, tree, &target, destination, &manner)? {
                continue;
            }
            let path = match (found.is_directory(), transfer.parents) {
                (_, true) => super::tree::join(destination, &found.asked),
                (true, false) => destination.clone(),
                (false, false) => within(found.name()),
            };
            target.copy(tree, found, &path, &manner)?;
        }
    }
    target.finish()
}

/// Unpacks a source that is an archive; `false` when it is none.
///
/// The archive is as hostile as a layer, and unpacked like one (CVE-2020-10696).
fn unpack(
    found: &Found,
    tree: &Tree,
    target: &Target,
    destination: &[u8],
    manner: &Manner,
) -> Result<bool> {
    if FileType::from_raw_mode(found.stat.st_mode) != FileType::RegularFile {
        return Ok(false);
    }
    let shown = tree
        .path()
        .join(String::from_utf8_lossy(&found.asked).as_ref());
    let open = || -> Result<BufReader<File>> {
        let file = rooted::reopen(found.fd.as_fd(), OFlags::RDONLY).doing("open", &shown)?;
        Ok(BufReader::with_capacity(1 << 17, File::from(file)))
    };
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Unpack {
        path: shown.clone(),
        source,
    };
    let mut start = match decoder(open()?) {
        Ok(start) => start,
        Err(error @ compression::Error::Unsupported(_)) => {
            // Docker would unpack it; silently copying it would be worse than saying so.
            let name = String::from_utf8_lossy(found.name()).to_lowercase();
            let is_archive = [".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".tbz"];
            return if is_archive.iter().any(|end| name.ends_with(end)) {
                Err(failed(error.into()))
            } else {
                Ok(false)
            };
        }
        Err(error) => return Err(failed(error.into())),
    };
    let mut block = [0; BLOCK];
    if std::io::Read::read_exact(&mut start, &mut block).is_err() || !is_archive_header(&block) {
        return Ok(false);
    }
    let into = target.unpack_into(destination, manner)?;
    let archive = decoder(open()?).map_err(|error| failed(error.into()))?;
    apply(archive, into, &apply::Options::default()).map_err(|error| failed(error.into()))?;
    Ok(true)
}

/// Whether a block is the header of a tar archive: its checksum says so.
fn is_archive_header(block: &[u8; BLOCK]) -> bool {
    let text: Vec<u8> = block[148..156]
        .iter()
        .copied()
        .filter(u8::is_ascii_digit)
        .collect();
    let Some(stated) = std::str::from_utf8(&text)
        .ok()
        .and_then(|text| u32::from_str_radix(text, 8).ok())
    else {
        return false;
    };
    let sum: u32 = block
        .iter()
        .enumerate()
        .map(|(at, &byte)| match at {
            148..156 => u32::from(b' '),
            _ => u32::from(byte),
        })
        .sum();
    stated == sum && block[0] != 0
}
