//! Carrying a plan out: stage after stage, step after step.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bundle_tools::Digest;
use bundle_tools::image::{ContainerConfig, Descriptor, History, ImageConfig, Platform, chain_ids};

use super::cache::{self, Key, Record};
use super::digest::FileDigests;
use super::ignore::Ignore;
use super::instruction::{Instruction, Step};
use super::plan::{Base, Origin, Plan};
use super::tree::Tree;
use super::word::{self, Lookup};
use super::{Error, Options, Progress, PullPolicy, Result, config, parse};
use crate::container::Programs;
use crate::container::model;
use crate::container::step::Step as StepContainer;
use crate::image::built::{self, BuiltLayer};
use crate::image::{self, Image, Reference};
use crate::store::Store;

/// Arguments that `RUN` sees without `ARG`, and that make no difference to what is built.
pub(super) const PROXY_ARGS: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// What a stage has come to.
#[derive(Debug, Clone, Default)]
pub(super) struct State {
    /// Its configuration; the layers by their diff ids in it.
    pub(super) config: ImageConfig,
    /// Archives in the store, by diff id, as far as they are known.
    blobs: BTreeMap<Digest, Descriptor>,
    /// `ARG`s that were declared, and have a value.
    pub(super) args: BTreeMap<String, String>,
    /// The default command is of this file, not of the base.
    own_command: bool,
}

impl State {
    /// The state of an image that files are copied from.
    pub(super) fn of(config: ImageConfig) -> State {
        State {
            config,
            ..State::default()
        }
    }

    pub(super) fn chain(&self) -> Option<Digest> {
        chain_ids(&self.config.rootfs.diff_ids).pop()
    }

    pub(super) fn container(&self) -> &ContainerConfig {
        &self.config.config
    }

    /// Replaces the variables of a word: environment goes before arguments.
    pub(super) fn expand(&self, text: &str, escape: char) -> Result<String> {
        word::expand(text, escape, &*self.lookup())
            .map_err(|error| Error::Invalid(format!("{text:?}: {error}")))
    }

    pub(super) fn lookup(&self) -> Box<Lookup<'_>> {
        Box::new(|name| {
            config::env(self.container(), name).or_else(|| self.args.get(name).cloned())
        })
    }

    /// Adds a layer on top.
    fn push(&mut self, layer: BuiltLayer) {
        if let Some(blob) = layer.blob {
            self.blobs.insert(layer.diff_id.clone(), blob);
        }
        self.config.rootfs.diff_ids.push(layer.diff_id);
    }

    /// The state as an image that a container can be made of.
    pub(super) fn as_image(&self) -> Image {
        let digest = self
            .chain()
            .unwrap_or_else(|| Digest::sha256_of(b"scratch"));
        let mut config = self.config.clone();
        config.config.entrypoint = None;
        config.config.cmd = None;
        // What steps write into a declared volume stays, as BuildKit has it.
        config.config.volumes.clear();
        Image {
            id: digest.clone(),
            manifest: Descriptor::new("", digest, 0),
            layers: chain_ids(&config.rootfs.diff_ids),
            config,
            names: Vec::new(),
            digests: BTreeMap::new(),
        }
    }
}

/// A build under way.
pub(super) struct Builder<'b> {
    pub(super) store: &'b Store,
    pub(super) programs: &'b Programs,
    pub(super) options: &'b Options,
    pub(super) plan: &'b Plan,
    pub(super) progress: &'b dyn Progress,
    pub(super) context: Option<Tree>,
    pub(super) digests: FileDigests,
    /// Stages that are finished.
    pub(super) done: HashMap<usize, State>,
    /// Images by the name they were asked for with.
    images: HashMap<String, Image>,
    /// Layers that steps of this build made or found remembered.
    layers: BTreeSet<Digest>,
    total: usize,
    number: usize,
}

impl<'b> Builder<'b> {
    pub(super) fn new(
        store: &'b Store,
        programs: &'b Programs,
        options: &'b Options,
        plan: &'b Plan,
        progress: &'b dyn Progress,
    ) -> Result<Builder<'b>> {
        let mut context = None;
        let mut digests = String::new();
        if let Some(path) = &options.context {
            let mut tree = Tree::open(path, Ignore::default())?;
            let text = match &options.ignore {
                Some(text) => Some(text.clone()),
                None => match tree.read_text(".dockerignore")? {
                    Some(text) => Some(text),
                    None => tree.read_text(".containerignore")?,
                },
            };
            if let Some(text) = text {
                tree = Tree::open(path, Ignore::parse(&text))?;
            }
            context = Some(tree);
            digests = Digest::sha256_of(path.as_os_str().as_encoded_bytes())
                .hex()
                .to_owned();
        }
        let steps = |stage: &usize| plan.stages[*stage].steps.len() + 1;
        Ok(Builder {
            store,
            programs,
            options,
            plan,
            progress,
            context,
            digests: FileDigests::read(cache::directory(store).join("files").join(digests)),
            done: HashMap::new(),
            images: HashMap::new(),
            layers: BTreeSet::new(),
            total: plan.order.iter().map(steps).sum(),
            number: 0,
        })
    }

    pub(super) fn build(mut self) -> Result<Image> {
        self.warn_of_unused_arguments();
        let mut last = State::default();
        let target = self.plan.order.last().copied();
        for &stage in &self.plan.order {
            last = self.stage(stage, Some(stage) == target)?;
            self.done.insert(stage, last.clone());
        }
        for (name, value) in &self.options.labels {
            last.config
                .config
                .labels
                .insert(name.clone(), value.clone());
        }
        let digests = std::mem::replace(&mut self.digests, FileDigests::read("".into()));
        if self.context.is_some() {
            digests.save();
        }
        let blobs = self.blobs(&last)?;
        let layers: Vec<Digest> = self.layers.into_iter().collect();
        Ok(built::publish(
            self.store,
            last.config,
            blobs,
            &self.options.names,
            &layers,
        )?)
    }

    fn warn_of_unused_arguments(&self) {
        let is_unused = |name: &&String| {
            !self.plan.mentioned.contains(*name)
                && !self.plan.global.contains_key(*name)
                && !PROXY_ARGS.contains(&name.as_str())
        };
        let unused: Vec<&str> = self
            .options
            .build_args
            .keys()
            .filter(is_unused)
            .map(String::as_str)
            .collect();
        if !unused.is_empty() {
            self.progress.warning(&format!(
                "one or more build args were not consumed: {}",
                unused.join(", ")
            ));
        }
    }

    /// The layers' archives of the finished image; those that were not kept are made now.
    fn blobs(&self, state: &State) -> Result<Vec<Descriptor>> {
        let diff_ids = &state.config.rootfs.diff_ids;
        let mut blobs = Vec::new();
        for (diff_id, chain) in diff_ids.iter().zip(chain_ids(diff_ids)) {
            let known = state.blobs.get(diff_id);
            blobs.push(match known {
                Some(blob) if built::has_blob(self.store, blob)? => blob.clone(),
                _ => self.packed(&chain, diff_id)?,
            });
        }
        Ok(blobs)
    }

    /// The archive of a layer of a stage that was no image's until now.
    fn packed(&self, chain: &Digest, diff_id: &Digest) -> Result<Descriptor> {
        if let Some(blob) = cache::blob(self.store, diff_id)
            && built::has_blob(self.store, &blob)?
        {
            return Ok(blob);
        }
        let blob = built::blob_of_layer(self.store, chain, diff_id)?;
        cache::keep_blob(self.store, diff_id, &blob)?;
        Ok(blob)
    }

    fn stage(&mut self, index: usize, is_last: bool) -> Result<State> {
        let stage = &self.plan.stages[index];
        self.announce(&stage.text);
        let (mut state, triggers) = self
            .start(index)
            .map_err(|error| self.blame(stage.line, &stage.text, error))?;
        self.total += triggers.len();
        for step in triggers.iter().chain(&stage.steps) {
            self.give_up_if_asked()?;
            self.announce(&step.text);
            self.step(&mut state, step, index, is_last)
                .map_err(|error| self.blame(step.line, &step.text, error))?;
        }
        Ok(state)
    }

    fn announce(&mut self, text: &str) {
        self.number += 1;
        self.progress.step(self.number, self.total, text);
    }

    fn blame(&self, line: usize, step: &str, error: Error) -> Error {
        match error {
            Error::Cancelled => Error::Cancelled,
            source => Error::Step {
                file: self.options.file_name.clone(),
                line,
                step: step.to_owned(),
                source: Box::new(source),
            },
        }
    }

    pub(super) fn give_up_if_asked(&self) -> Result<()> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let Some(cancel) = self.progress.cancel() else {
            return Ok(());
        };
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        match poll(&mut [PollFd::new(&cancel, PollFlags::IN)], Some(&now)) {
            Ok(1..) => Err(Error::Cancelled),
            _ => Ok(()),
        }
    }

    /// What a stage starts from, and the triggers its base has for it.
    fn start(&mut self, index: usize) -> Result<(State, Vec<Step>)> {
        let stage = &self.plan.stages[index];
        let mut state = match &stage.base {
            Base::Scratch => {
                let platform = self.platform(stage.platform.as_deref())?;
                State {
                    config: ImageConfig {
                        architecture: platform.architecture,
                        variant: platform.variant,
                        os: platform.os,
                        ..ImageConfig::default()
                    },
                    ..State::default()
                }
            }
            Base::Stage(other) => {
                let mut state = self.done.get(other).cloned().unwrap_or_default();
                state.args.clear();
                state.own_command = false;
                state
            }
            Base::Image(name) => {
                let image = self.image(name, stage.platform.as_deref())?;
                let blobs = built::blobs_of(self.store, &image)?;
                // Layers that were removed behind our back are unpacked again.
                image::lower_directories(self.store, &image)?;
                let mut config = image.config;
                keep_what_is_the_images(&mut config);
                State {
                    blobs: config.rootfs.diff_ids.iter().cloned().zip(blobs).collect(),
                    config,
                    ..State::default()
                }
            }
        };
        let triggers = state.config.config.on_build.take().unwrap_or_default();
        let triggers = triggers
            .iter()
            .map(|text| parse::trigger(text).map_err(|error| Error::Invalid(error.message)))
            .collect::<Result<_>>()?;
        Ok((state, triggers))
    }

    fn platform(&self, own: Option<&str>) -> Result<Platform> {
        match own {
            Some(text) => text
                .parse()
                .map_err(|error| Error::Invalid(format!("--platform {text}: {error}"))),
            None => Ok(self
                .options
                .pull_options
                .platform
                .clone()
                .unwrap_or_else(Platform::host)),
        }
    }

    /// Finds an image, or fetches it; once a build.
    pub(super) fn image(&mut self, name: &str, platform: Option<&str>) -> Result<Image> {
        if let Some(image) = self.images.get(name) {
            return Ok(image.clone());
        }
        let mut options = self.options.pull_options.clone();
        if let Some(platform) = platform {
            options.platform = Some(self.platform(Some(platform))?);
        }
        let fits = |image: &Image| {
            options.platform.as_ref().is_none_or(|wanted| {
                wanted.os == image.config.os && wanted.architecture == image.config.architecture
            })
        };
        let found = match self.options.pull {
            PullPolicy::Always => None,
            _ => image::find(self.store, name)?.filter(fits),
        };
        let image = match (found, self.options.pull) {
            (Some(image), _) => image,
            (None, PullPolicy::Never) => {
                return Err(Error::Invalid(format!(
                    "image {name} is not here, and it is not to be pulled"
                )));
            }
            (None, _) => {
                let reference: Reference = name.parse().map_err(image::Error::from)?;
                let progress = self.progress.pulling(&reference);
                image::pull(self.store, &reference, &options, progress)?.image
            }
        };
        self.images.insert(name.to_owned(), image.clone());
        Ok(image)
    }

    /// What a stage has come to, or an image is.
    pub(super) fn state_of(&mut self, origin: &Origin) -> Result<State> {
        match origin {
            Origin::Stage(index) => Ok(self.done.get(index).cloned().unwrap_or_default()),
            Origin::Image(name) => {
                let image = self.image(name, None)?;
                image::lower_directories(self.store, &image)?;
                Ok(State::of(image.config))
            }
            Origin::Context => Ok(State::default()),
        }
    }

    fn step(&mut self, state: &mut State, step: &Step, stage: usize, is_last: bool) -> Result<()> {
        match &step.instruction {
            Instruction::Run(run) => self.run(state, run, stage, is_last),
            Instruction::Copy(copy) => self.copy(state, "COPY", copy, stage, is_last),
            Instruction::Add(copy) => self.copy(state, "ADD", copy, stage, is_last),
            Instruction::Workdir(path) => {
                let path = state.expand(path, self.plan.escape)?;
                self.workdir(state, &path, is_last)
            }
            Instruction::Arg(args) => {
                let text = self.declare(state, args)?;
                self.note(state, text)
            }
            other => {
                let text = self.configure(state, other)?;
                self.note(state, text)
            }
        }
    }

    /// `ARG`: the caller's value, else the default here, else that before the first `FROM`.
    fn declare(&self, state: &mut State, args: &[(String, Option<String>)]) -> Result<String> {
        let mut words = vec!["ARG".to_owned()];
        for (name, default) in args {
            let default = default
                .as_ref()
                .map(|text| state.expand(text, self.plan.escape))
                .transpose()?;
            words.push(match &default {
                Some(default) => format!("{name}={default}"),
                None => name.clone(),
            });
            let given = self.options.build_args.get(name).cloned();
            let value = given
                .or(default)
                .or_else(|| self.plan.global.get(name).cloned());
            if let Some(value) = value {
                state.args.insert(name.clone(), value);
            }
        }
        Ok(words.join(" "))
    }

    /// Instructions that change the configuration alone. Returns them with their variables replaced.
    fn configure(&self, state: &mut State, instruction: &Instruction) -> Result<String> {
        let before = state.clone();
        let expand = |text: &str| before.expand(text, self.plan.escape);
        let inner = &mut state.config.config;
        let list = |words: &[String]| serde_json::to_string(words).unwrap_or_default();
        Ok(match instruction {
            Instruction::Env(pairs) => {
                let mut text = "ENV".to_owned();
                for (name, value) in pairs {
                    let (name, value) = (expand(name)?, expand(value)?);
                    config::set_env(inner, &name, &value);
                    text.push_str(&format!(" {name}={value}"));
                }
                text
            }
            Instruction::Label(pairs) => {
                let mut text = "LABEL".to_owned();
                for (name, value) in pairs {
                    let (name, value) = (expand(name)?, expand(value)?);
                    text.push_str(&format!(" {name}={value}"));
                    inner.labels.insert(name, value);
                }
                text
            }
            Instruction::User(user) => {
                inner.user = expand(user)?;
                format!("USER {}", inner.user)
            }
            Instruction::Cmd(command) => {
                let words = config::words(inner, command);
                state.own_command = true;
                let text = format!("CMD {}", list(&words));
                inner.cmd = Some(words);
                text
            }
            Instruction::Entrypoint(command) => {
                let words = config::words(inner, command);
                // The base's command was meant for the base's entry point.
                if !state.own_command {
                    inner.cmd = None;
                }
                let text = format!("ENTRYPOINT {}", list(&words));
                inner.entrypoint = Some(words).filter(|words| !words.is_empty());
                text
            }
            Instruction::Expose(ports) => {
                let ports = expand(ports)?;
                for port in ports.split_whitespace() {
                    config::expose(inner, port).map_err(Error::Invalid)?;
                }
                format!("EXPOSE {ports}")
            }
            Instruction::Volume(paths) => {
                let paths = paths.iter().map(|path| expand(path));
                let paths: Vec<String> = paths.collect::<Result<_>>()?;
                for path in &paths {
                    let path = config::absolute(inner, path);
                    inner.volumes.insert(path, serde_json::json!({}));
                }
                format!("VOLUME {}", list(&paths))
            }
            Instruction::Shell(words) => {
                inner.shell = Some(words.clone());
                format!("SHELL {}", list(words))
            }
            Instruction::StopSignal(signal) => {
                let signal = config::stop_signal(&expand(signal)?).map_err(Error::Invalid)?;
                inner.stop_signal = Some(signal.clone());
                format!("STOPSIGNAL {signal}")
            }
            Instruction::Healthcheck(check) => {
                inner.healthcheck = Some(check.clone());
                format!("HEALTHCHECK {}", list(&check.test))
            }
            Instruction::OnBuild(text) => {
                inner
                    .on_build
                    .get_or_insert_with(Vec::new)
                    .push(text.clone());
                format!("ONBUILD {text}")
            }
            Instruction::Maintainer(name) => {
                state.config.author = Some(name.clone());
                format!("MAINTAINER {name}")
            }
            _ => String::new(),
        })
    }

    /// A step without a layer: remembered for nothing but its time, so that the same file gives the same image.
    fn note(&mut self, state: &mut State, text: String) -> Result<()> {
        let mut key = Key::new(state.chain().as_ref(), &state.config);
        key.add(text.as_bytes());
        let key = key.finish();
        match self.remembered(&key) {
            Some(record) => {
                self.add_history(state, text, record.created, true);
                self.progress.cached();
            }
            None => {
                let created = jiff::Timestamp::now().to_string();
                let record = Record {
                    created: created.clone(),
                    layer: None,
                };
                cache::keep(self.store, &key, &record)?;
                self.add_history(state, text, created, true);
                self.progress.done(None);
            }
        }
        Ok(())
    }

    fn remembered(&self, key: &Digest) -> Option<Record> {
        if self.options.no_cache {
            return None;
        }
        cache::find(self.store, key)
    }

    fn add_history(&self, state: &mut State, text: String, created: String, is_empty: bool) {
        state.config.created = Some(created.clone());
        state.config.history.push(History {
            created: Some(created),
            created_by: Some(text),
            empty_layer: is_empty,
            ..History::default()
        });
    }

    /// A step that may change files: found remembered under `key`, or done by `work` in a container made with
    /// `options`.
    pub(super) fn layer(
        &mut self,
        state: &mut State,
        (key, text): (Key, String),
        is_last: bool,
        work: impl FnOnce(&mut Self, &State) -> Result<Option<StepContainer<'b>>>,
    ) -> Result<()> {
        let key = key.finish();
        if let Some(record) = self.remembered(&key) {
            let is_empty = record.layer.is_none();
            if let Some(layer) = record.layer {
                state.push(layer.into());
                self.layers.extend(state.chain());
            }
            self.add_history(state, text, record.created, is_empty);
            self.progress.cached();
            return Ok(());
        }
        let layer = match work(self, state)? {
            Some(mut container) => {
                container.tear_down()?;
                let below = &state.config.rootfs.diff_ids;
                built::layer_of_upper(self.store, &container.upper(), below, is_last)?
            }
            None => None,
        };
        let record = Record {
            created: jiff::Timestamp::now().to_string(),
            layer: layer.clone().map(Into::into),
        };
        cache::keep(self.store, &key, &record)?;
        let name = layer.as_ref().map(|layer| layer.chain.short().to_owned());
        let is_empty = layer.is_none();
        if let Some(layer) = layer {
            self.layers.insert(layer.chain.clone());
            state.push(layer);
        }
        self.add_history(state, text, record.created, is_empty);
        self.progress.done(name.as_deref());
        Ok(())
    }

    /// A container on top of a state, for a step that starts no process.
    pub(super) fn mount(&self, state: &State) -> Result<StepContainer<'b>> {
        let options = model::Options {
            command: vec!["copy".to_owned()],
            ..model::Options::default()
        };
        Ok(StepContainer::mount(
            self.store,
            self.programs,
            &state.as_image(),
            options,
        )?)
    }
}

/// Drops what docker left in the base's configuration about the container it was made in.
fn keep_what_is_the_images(config: &mut ImageConfig) {
    config
        .other
        .retain(|name, _| name == "os.version" || name == "os.features");
    config.config.other.clear();
}
