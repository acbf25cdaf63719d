//! What the attacks share: something of the host's that must stay as it is, bundles with a hostile program in them, and an
//! attacker that exchanges two paths without pause.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::{Value, json};
use stack_tests::bundle::Bundle;
use stack_tests::command::Outcome;
use stack_tests::programs::compiled;
use stack_tests::runtime::Runtime;

/// What the sentinel's file says.
pub(crate) const SECRET: &str = "a secret of the host";

/// A directory of the host that no container is given.
#[derive(Debug)]
pub(crate) struct Sentinel {
    directory: tempfile::TempDir,
    before: BTreeMap<PathBuf, String>,
}

impl Sentinel {
    /// Makes it, with a file `secret`, a directory `empty` and a program `busybox`.
    pub(crate) fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("qhost").tempdir().unwrap();
        std::fs::write(directory.path().join("secret"), SECRET).unwrap();
        std::fs::create_dir(directory.path().join("empty")).unwrap();
        std::fs::copy("/bin/busybox", directory.path().join("busybox")).unwrap();
        let mut sentinel = Self {
            directory,
            before: BTreeMap::new(),
        };
        sentinel.before = sentinel.inventory();
        sentinel
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The path of something in it, as text.
    pub(crate) fn at(&self, name: &str) -> String {
        self.path().join(name).display().to_string()
    }

    fn inventory(&self) -> BTreeMap<PathBuf, String> {
        inventory(self.path())
    }

    /// Fails unless all in it is as it was made.
    #[track_caller]
    pub(crate) fn assert_untouched(&self) {
        assert_eq!(
            self.inventory(),
            self.before,
            "the host's files were changed"
        );
    }
}

/// Every file below a directory with its kind, permissions, owner and content.
pub(crate) fn inventory(directory: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![directory.to_owned()];
    while let Some(path) = open.pop() {
        let stat = path.symlink_metadata().unwrap();
        let content = match stat.file_type() {
            kind if kind.is_file() => stack_tests::image::digest_of_file(&path).unwrap(),
            kind if kind.is_symlink() => path.read_link().unwrap().display().to_string(),
            _ => String::new(),
        };
        let line = format!(
            "{:o} {}:{} {}",
            stat.mode(),
            stat.uid(),
            stat.gid(),
            content
        );
        if stat.is_dir() {
            open.extend(
                std::fs::read_dir(&path)
                    .unwrap()
                    .map(|it| it.unwrap().path()),
            );
        }
        found.insert(path, line);
    }
    found
}

/// Exchanges two paths again and again, as a second container would that shares the directory they are in.
#[derive(Debug)]
pub(crate) struct Exchange {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Exchange {
    /// Starts with them.
    pub(crate) fn start(one: PathBuf, other: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicU64::new(0));
        let (stopped, counted) = (stop.clone(), count.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let done = renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE);
                if done.is_ok() {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self {
            stop,
            count,
            thread: Some(thread),
        }
    }

    /// How often they have been exchanged.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A slow machine starts fewer containers than a test asks for.
const LONGEST_RACE: Duration = Duration::from_secs(5);

/// How a race went.
#[derive(Debug, Default)]
pub(crate) struct Race {
    /// Containers that ran to their end.
    pub(crate) ran: u32,
    /// Containers that were refused.
    pub(crate) refused: u32,
    /// Exchanges while a container was started.
    pub(crate) exchanges: u64,
}

impl Race {
    /// Starts containers of `bundle` while `attack` is at it, and shows each outcome to `look`; a container that was
    /// refused must have been so in one line.
    #[track_caller]
    pub(crate) fn run(
        rounds: u32,
        bundle: &Bundle,
        attack: &Exchange,
        look: impl Fn(&Outcome),
    ) -> Self {
        let runtime = Runtime::new();
        let mut race = Self::default();
        let begin = Instant::now();
        for round in 0..rounds {
            if round > 10 && begin.elapsed() > LONGEST_RACE {
                break;
            }
            let before = attack.count();
            let outcome = runtime.run_bundle(bundle);
            race.exchanges += attack.count() - before;
            match outcome.code {
                0 => race.ran += 1,
                _ => {
                    outcome.refused(1, "");
                    race.refused += 1;
                }
            }
            look(&outcome);
        }
        assert!(
            race.exchanges >= u64::from(race.ran + race.refused),
            "the attacker was not at it: {race:?}"
        );
        race
    }
}

/// A bundle with the hostile program at `/bin/attacker`, running `args`.
pub(crate) fn hostile(args: &[&str]) -> Bundle {
    let bundle = Bundle::new(args);
    install_attacker(&bundle.rootfs());
    bundle
}

/// Puts the hostile program into a root file system.
pub(crate) fn install_attacker(rootfs: &Path) {
    std::fs::copy(
        compiled("cc", "tests/security/attacker.c"),
        rootfs.join("bin/attacker"),
    )
    .unwrap();
    std::fs::write(rootfs.join(".to-be-attacked"), "").unwrap();
}

/// Runs a bundle in the foreground, under an id of its own.
#[track_caller]
pub(crate) fn run(bundle: &Bundle) -> Outcome {
    Runtime::new().run_bundle(bundle)
}

/// One bundle with one configuration after another: a root file system takes its time.
#[derive(Debug)]
pub(crate) struct Variants {
    /// The bundle, with the configuration of the moment.
    pub(crate) bundle: Bundle,
    base: Value,
}

impl Variants {
    /// Starts with a bundle.
    pub(crate) fn of(bundle: Bundle) -> Self {
        let base = bundle.config.clone();
        Self { bundle, base }
    }

    /// The first configuration with some changes, by JSON pointers.
    #[track_caller]
    pub(crate) fn with(&mut self, changes: &[(&str, Value)]) -> &Bundle {
        self.bundle.config = self.base.clone();
        for (pointer, value) in changes {
            self.bundle.set(pointer, value.clone());
        }
        self.bundle.save();
        &self.bundle
    }
}

/// Makes the path a symbolic link, whatever it was.
pub(crate) fn replace_by_link(path: &Path, target: &str) {
    if path.symlink_metadata().is_ok_and(|it| it.is_dir()) {
        std::fs::remove_dir_all(path).unwrap();
    } else {
        let _ = std::fs::remove_file(path);
    }
    symlink(target, path).unwrap();
}

/// A mount of the configuration.
pub(crate) fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({"destination": destination, "type": kind, "source": source, "options": options})
}

/// The bundle without the mounts at or below a path.
pub(crate) fn without_mounts(mut bundle: Bundle, path: &str) -> Bundle {
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with(path));
    bundle.save();
    bundle
}

/// The number in `name=number` of a line.
#[track_caller]
pub(crate) fn number(text: &str, name: &str) -> i64 {
    let found = text
        .split_whitespace()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        .and_then(|value| value.parse().ok());
    found.unwrap_or_else(|| panic!("no {name} in {text:?}"))
}
