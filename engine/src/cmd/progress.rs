//! The progress of pulls and pushes: bars on a terminal, lines elsewhere, all on standard error.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};

use bundle_tools::Digest;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use qengine::image::{LayerState, Progress};

/// Which way layers go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Pull,
    Push,
}

/// Progress as bars on a terminal, as lines elsewhere.
pub(crate) struct Shown {
    way: Way,
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
    pub(crate) fn new(way: Way, quiet: bool) -> Shown {
        Shown {
            way,
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
        let words = match (state, self.way) {
            (LayerState::Waiting, Way::Pull) => "Pulling fs layer",
            (LayerState::Waiting, Way::Push) => "Preparing",
            (LayerState::Exists, Way::Pull) => "Already exists",
            (LayerState::Exists, Way::Push) => "Layer already exists",
            (LayerState::Downloading { .. }, _) => "Downloading",
            (LayerState::Uploading { .. }, _) => "Pushing",
            (LayerState::Retrying(_), _) => "Retrying",
            (LayerState::Extracting, _) => "Extracting",
            (LayerState::Complete, Way::Pull) => "Pull complete",
            (LayerState::Complete, Way::Push) => "Pushed",
            (LayerState::Mounted(_), _) => "Mounted",
        };
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let layer = layers.entry(digest.clone()).or_default();
        if let Some(bars) = &self.bars {
            let bar = layer.bar.get_or_insert_with(|| bars.add(new_bar(digest)));
            show(bar, words, state);
        } else if layer.said != words {
            layer.said = words;
            match state {
                LayerState::Downloading { .. } | LayerState::Uploading { .. } => {}
                LayerState::Mounted(from) => eprintln!("{}: Mounted from {from}", digest.short()),
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
        LayerState::Downloading { done, total } | LayerState::Uploading { done, total } => {
            if bar.length() != Some(total) {
                bar.set_length(total);
                bar.set_style(with_bar());
                bar.set_message(words);
            }
            bar.set_position(done);
        }
        LayerState::Retrying(reason) => bar.set_message(format!("{words}: {reason}")),
        LayerState::Mounted(from) => {
            bar.set_style(words_only());
            bar.finish_with_message(format!("{words} from {from}"));
        }
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
