//! Making a container: its directory, its name, its volumes, its record. Nothing is mounted and nothing runs yet.

use std::collections::BTreeSet;
use std::fs;

use bundle_tools::image::ImageConfig;
use jiff::Timestamp;

use super::find::Handle;
use super::model::{Config, Options, State, Status, Volume, VolumeSource};
use super::{Error, Result, SystemContext, recover, volumes};
use crate::image::Image;
use crate::store::{self, Durability, Lock, Store, make_dir, reserve};

/// A container that was just made, still locked by its maker.
#[derive(Debug)]
pub struct Created {
    /// The container.
    pub handle: Handle,
    /// Held so that nobody takes it for abandoned.
    pub lock: Lock,
    /// Its state.
    pub state: State,
}

/// Makes a container of `image`. With `disposable` it vanishes when its maker dies before it has started it.
///
/// # Errors
/// When the options contradict each other, the name is taken, or the store can't be written; nothing is left then.
pub fn create(store: &Store, image: &Image, options: Options, disposable: bool) -> Result<Created> {
    let args = arguments(image, &options)?;
    if let Some(name) = &options.name {
        check_name(name)?;
    }
    let id = new_id()?;
    let lock = make_directory(store, &id)?;
    let name = take_name(store, &id, options.name.as_deref())
        .inspect_err(|_| recover::discard(store, &id))?;
    let (handle, state) = fill(store, image, options, &id, name, args, disposable)
        .inspect_err(|_| recover::discard(store, &id))?;
    if !handle.config.options.build_step {
        store.emit(&handle.event("create"));
    }
    Ok(Created {
        handle,
        lock,
        state,
    })
}

/// The image's configuration without its history: enough to start the container after the image has gone.
fn kept_config(image: &Image) -> ImageConfig {
    ImageConfig {
        history: Vec::new(),
        ..image.config.clone()
    }
}

/// The directory appears under its final name only once its lock is held: whoever sees it unlocked and unfinished may
/// take it for abandoned.
fn make_directory(store: &Store, id: &str) -> Result<Lock> {
    let fresh = store.containers().join(format!(".new-{id}"));
    make_dir(&fresh)?;
    let lock = Lock::exclusive(&fresh.join("lock"))?;
    fs::rename(&fresh, store.container(id)).system("make", store.container(id))?;
    Ok(lock)
}

fn fill(
    store: &Store,
    image: &Image,
    mut options: Options,
    id: &str,
    name: String,
    args: Vec<String>,
    disposable: bool,
) -> Result<(Handle, State)> {
    add_image_volumes(image, &mut options)?;
    volumes::check(store, &options)?;
    let _held = volumes::hold(store, &options)?;
    let config = Config {
        id: id.to_owned(),
        name,
        created: Timestamp::now(),
        image_id: image.id.clone(),
        layers: image.layers.clone(),
        args,
        image_config: kept_config(image),
        options,
    };
    let durability = if config.options.auto_remove {
        Durability::Volatile
    } else {
        Durability::Durable
    };
    let handle = Handle::made(store, config);
    let state = State {
        status: if disposable {
            Status::Creating
        } else {
            Status::Created
        },
        disposable,
        ..State::default()
    };
    handle.save(&state)?;
    store::write_json(
        &handle.directory().join("container.json"),
        &handle.config,
        durability,
    )?;
    volumes::make_anonymous(store, &handle.config.options)?;
    Ok((handle, state))
}

/// The command line: docker's rules for entrypoint and command.
fn arguments(image: &Image, options: &Options) -> Result<Vec<String>> {
    let image_entrypoint = image.config.config.entrypoint.clone();
    let image_command = image.config.config.cmd.clone();
    let command = |fallback: Option<Vec<String>>| {
        if options.command.is_empty() {
            fallback.unwrap_or_default()
        } else {
            options.command.clone()
        }
    };
    // An entrypoint of the user's own drops the image's command, which was meant for the image's entrypoint.
    let args: Vec<String> = match &options.entrypoint {
        Some(own) => own.iter().cloned().chain(command(None)).collect(),
        None => image_entrypoint
            .unwrap_or_default()
            .into_iter()
            .chain(command(image_command))
            .collect(),
    };
    if args.is_empty() || args[0].is_empty() {
        return Err(Error::NoCommand(options.image.clone()));
    }
    Ok(args)
}

pub(super) fn check_name(name: &str) -> Result<()> {
    if store::is_name(name) {
        Ok(())
    } else {
        Err(Error::BadName(name.to_owned()))
    }
}

fn take_name(store: &Store, id: &str, wanted: Option<&str>) -> Result<String> {
    let Some(wanted) = wanted else {
        for attempt in 0.. {
            let name = made_up_name(id, attempt);
            if reserve::reserve(store, &store.names().join(&name), id)? == reserve::Outcome::Taken {
                return Ok(name);
            }
        }
        unreachable!("some number is free");
    };
    take_this_name(store, id, wanted)?;
    Ok(wanted.to_owned())
}

/// Reserves a name, after collecting whoever holds it without a right to.
pub(super) fn take_this_name(store: &Store, id: &str, wanted: &str) -> Result<()> {
    let link = store.names().join(wanted);
    loop {
        match reserve::reserve(store, &link, id)? {
            reserve::Outcome::Taken => return Ok(()),
            reserve::Outcome::HeldBy(holder) => {
                if !recover::collect_if_abandoned(store, &holder)?
                    && !recover::release_stale_name(store, &holder, wanted)?
                {
                    return Err(Error::NameTaken {
                        name: wanted.to_owned(),
                        holder: holder.chars().take(12).collect(),
                    });
                }
            }
        }
    }
}

/// Two words out of the id's own digits, and a number only when they are taken.
fn made_up_name(id: &str, attempt: u32) -> String {
    const QUALITIES: [&str; 32] = [
        "agile", "amber", "bold", "brave", "brisk", "calm", "clear", "coral", "cosmic", "crisp",
        "deft", "eager", "early", "fair", "fleet", "gentle", "golden", "happy", "keen", "kind",
        "light", "lucid", "mellow", "noble", "proud", "quick", "quiet", "rapid", "silver",
        "steady", "swift", "vivid",
    ];
    const THINGS: [&str; 32] = [
        "anchor", "barge", "beacon", "brig", "buoy", "capstan", "clipper", "compass", "crane",
        "cutter", "dock", "ferry", "galley", "harbor", "heron", "keel", "kite", "ketch", "lagoon",
        "lantern", "mast", "otter", "pelican", "pier", "quay", "rudder", "sail", "schooner",
        "skiff", "tide", "tug", "yawl",
    ];
    let digit = |at: usize| usize::from_str_radix(&id[at..at + 4], 16).unwrap_or(0);
    let quality = QUALITIES[digit(0) % QUALITIES.len()];
    let thing = THINGS[digit(4) % THINGS.len()];
    match attempt {
        0 => format!("{quality}_{thing}"),
        _ => format!("{quality}_{thing}{}", digit(8) + attempt as usize),
    }
}

/// The image's VOLUME paths become anonymous volumes, where the user has mounted nothing there.
fn add_image_volumes(image: &Image, options: &mut Options) -> Result<()> {
    let tmpfs = options
        .tmpfs
        .iter()
        .filter_map(|entry| clean_path(entry.split(':').next().unwrap_or_default()));
    let mounted = options
        .volumes
        .iter()
        .map(|volume| volume.destination.clone());
    let taken: BTreeSet<String> = mounted.chain(tmpfs).collect();
    for declared in image.config.config.volumes.keys() {
        let Some(destination) = clean_path(declared).filter(|path| path != "/") else {
            continue;
        };
        if taken.contains(&destination) {
            continue;
        }
        options.volumes.push(Volume {
            source: VolumeSource::Anonymous(new_id()?),
            destination,
            read_only: false,
            options: Vec::new(),
            mount: None,
        });
    }
    Ok(())
}

/// An absolute path without `.`, `..`, doubled and trailing slashes, read as text; `None` for a relative one.
#[must_use]
pub fn clean_path(path: &str) -> Option<String> {
    let rest = path.strip_prefix('/')?;
    let mut parts: Vec<&str> = Vec::new();
    for part in rest.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    Some(format!("/{}", parts.join("/")))
}

/// A name for an anonymous volume.
///
/// # Errors
/// When the kernel has no randomness to give.
pub fn new_volume_name() -> Result<String> {
    new_id()
}

/// 64 hexadecimal digits of randomness. Never all decimal in its first twelve: a short id must not look like a number.
pub(crate) fn new_id() -> Result<String> {
    loop {
        let mut bytes = [0u8; 32];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
            .system("read randomness from", "getrandom(2)")?;
        let id: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        if !id[..12].bytes().all(|byte| byte.is_ascii_digit()) {
            return Ok(id);
        }
    }
}

/// `100m`, `1.5g`, `4096`, `10kb`: docker's sizes, powers of 1024. `None` for anything else.
#[must_use]
pub fn parse_bytes(text: &str) -> Option<i64> {
    let text = text.trim().to_ascii_lowercase();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let scale: i64 = match &text[digits.len()..] {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        "p" | "pb" | "pib" => 1 << 50,
        _ => return None,
    };
    if let Ok(whole) = digits.parse::<i64>() {
        return whole.checked_mul(scale).filter(|&bytes| bytes >= 0);
    }
    let (whole, fraction) = digits.split_once('.')?;
    let whole: i64 = whole.parse().ok()?;
    if fraction.is_empty()
        || fraction.len() > 9
        || !fraction.bytes().all(|byte| byte.is_ascii_digit())
    {
        return None;
    }
    let denominator = 10_i64.pow(u32::try_from(fraction.len()).ok()?);
    let part =
        i128::from(fraction.parse::<i64>().ok()?) * i128::from(scale) / i128::from(denominator);
    whole
        .checked_mul(scale)?
        .checked_add(i64::try_from(part).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_docker_reads_them() {
        for (text, bytes) in [
            ("100m", Some(100 << 20)),
            ("100M", Some(100 << 20)),
            ("1.5g", Some(3 << 29)),
            ("4096", Some(4096)),
            ("10kb", Some(10 << 10)),
            ("0", Some(0)),
            ("m", None),
            ("-1m", None),
            ("1.m", None),
            ("10x", None),
            ("", None),
            ("9999999999g", None),
        ] {
            assert_eq!(parse_bytes(text), bytes, "{text}");
        }
    }

    #[test]
    fn paths_are_cleaned_as_text() {
        for (path, clean) in [
            ("/a/", "/a"),
            ("//a/./b/../c", "/a/c"),
            ("/..", "/"),
            ("/", "/"),
        ] {
            assert_eq!(clean_path(path).as_deref(), Some(clean));
        }
        assert_eq!(clean_path("a"), None);
    }

    #[test]
    fn names_are_checked() {
        for name in ["a", "web-1", "a.b_c"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", "-ab", ".ab", "a/b", "a b", "ä1"] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
