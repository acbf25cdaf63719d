//! Log drivers: which there are, what their options mean, and what the monitor is told of them.

use std::collections::BTreeMap;
use std::str::FromStr;

use super::super::create::parse_bytes;
use super::super::find::Handle;
use super::super::{Error, Result};

/// A log that grows without bound takes the host down with it (moby#40207): twice this.
const DEFAULT_SIZE: i64 = 100 << 20;

/// Where the output of a container goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Driver {
    /// Docker's JSON lines; `local` is another name for it.
    #[default]
    JsonFile,
    /// Kubernetes' lines.
    K8sFile,
    /// The systemd journal.
    Journald,
    /// Nowhere, but to who is attached.
    None,
    /// The streams of whoever starts the container.
    Passthrough,
}

impl FromStr for Driver {
    type Err = Error;

    fn from_str(text: &str) -> Result<Driver> {
        Ok(match text {
            "json-file" | "local" => Driver::JsonFile,
            "k8s-file" => Driver::K8sFile,
            "journald" => Driver::Journald,
            "none" => Driver::None,
            "passthrough" => Driver::Passthrough,
            _ => {
                return Err(Error::Invalid(format!(
                    "unknown log driver {text:?}: json-file, local, k8s-file, journald, none and passthrough are there"
                )));
            }
        })
    }
}

impl Driver {
    /// The driver of a container.
    pub(in crate::container) fn of(handle: &Handle) -> Driver {
        let options = &handle.config.options;
        options
            .log_driver
            .as_deref()
            .and_then(|name| name.parse().ok())
            .unwrap_or_default()
    }

    fn word(self) -> &'static str {
        match self {
            Driver::JsonFile => "json-file",
            Driver::K8sFile => "k8s-file",
            Driver::Journald => "journald",
            Driver::None => "none",
            Driver::Passthrough => "passthrough",
        }
    }

    /// Options that it understands.
    fn keys(self) -> &'static [&'static str] {
        match self {
            Driver::JsonFile | Driver::K8sFile => &["max-size", "max-file", "labels", "env", "tag"],
            Driver::Journald => &["labels", "env", "tag"],
            Driver::None | Driver::Passthrough => &[],
        }
    }

    /// Checks what `--log-opt` says.
    ///
    /// # Errors
    /// For an option that the driver does not have, or a value that it can't have.
    pub fn check(self, options: &BTreeMap<String, String>) -> Result<()> {
        for (key, value) in options {
            if !self.keys().contains(&key.as_str()) {
                return Err(Error::Invalid(format!(
                    "unknown log opt '{key}' for {} log driver",
                    self.word()
                )));
            }
            let is_good = match key.as_str() {
                "max-size" => value == "-1" || parse_bytes(value).is_some_and(|size| size > 0),
                "max-file" => value.parse::<u32>().is_ok_and(|count| count > 0),
                _ => true,
            };
            if !is_good {
                return Err(Error::Invalid(format!("invalid log option {key}={value}")));
            }
        }
        Ok(())
    }
}

/// The monitor's arguments.
pub(in crate::container) fn arguments(handle: &Handle) -> Vec<String> {
    let options = &handle.config.options.log_opts;
    let driver = Driver::of(handle);
    let path = match driver {
        Driver::JsonFile | Driver::K8sFile => {
            format!("{}:{}", driver.word(), handle.log().display())
        }
        _ => driver.word().to_owned(),
    };
    let mut arguments = vec!["--log-path".to_owned(), path];
    if driver == Driver::Journald
        && let Some(tag) = options.get("tag")
    {
        arguments.extend(["--log-tag".to_owned(), tag_text(tag, handle)]);
    }
    if !matches!(driver, Driver::JsonFile | Driver::K8sFile) {
        return arguments;
    }
    match options.get("max-size").map(|size| parse_bytes(size)) {
        None => arguments.extend(["--log-size-max".to_owned(), DEFAULT_SIZE.to_string()]),
        Some(Some(size)) => arguments.extend(["--log-size-max".to_owned(), size.to_string()]),
        Some(None) => {}
    }
    // Docker counts the file being written, conmon only the old ones.
    let files: u32 = options
        .get("max-file")
        .and_then(|count| count.parse().ok())
        .unwrap_or(2);
    if files > 1 {
        arguments.extend([
            "--log-rotate".to_owned(),
            "--log-max-files".to_owned(),
            (files - 1).to_string(),
        ]);
    }
    arguments
}

/// What the monitor writes with each record, as it reads it from a file: `NAME=VALUE`, each ended by a NUL.
pub(in crate::container) fn labels(handle: &Handle) -> String {
    let entry = |name: &str, value: &str| match Driver::of(handle) {
        Driver::JsonFile => format!("{name}={value}\0"),
        Driver::Journald if name != "tag" => {
            format!("{}={}\0", field_name(name), value.replace('\n', " "))
        }
        _ => String::new(),
    };
    let details = details(handle);
    let entries = details.iter().map(|(name, value)| entry(name, value));
    entries.collect()
}

/// What `logs --details` shows before each line: the labels and variables that `--log-opt labels=…,env=…` name, and
/// the tag.
#[must_use]
pub fn details(handle: &Handle) -> BTreeMap<String, String> {
    let config = &handle.config;
    let image = &config.image_config.config;
    let listed = |key: &str| {
        let list = config.options.log_opts.get(key).map(String::as_str);
        list.unwrap_or_default()
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
    };
    let mut found = BTreeMap::new();
    for name in listed("labels") {
        let labels = [&config.options.labels, &image.labels];
        if let Some(value) = labels.iter().find_map(|labels| labels.get(name)) {
            found.insert(name.to_owned(), value.clone());
        }
    }
    for name in listed("env") {
        // The user's own come last, and win.
        let mut entries = config
            .options
            .env
            .iter()
            .rev()
            .chain(image.env.iter().rev());
        if let Some(value) = entries.find_map(|entry| entry.strip_prefix(name)?.strip_prefix('=')) {
            found.insert(name.to_owned(), value.to_owned());
        }
    }
    if let Some(tag) = config.options.log_opts.get("tag") {
        found.insert("tag".to_owned(), tag_text(tag, handle));
    }
    found
}

/// Docker's placeholders in a tag.
fn tag_text(tag: &str, handle: &Handle) -> String {
    let config = &handle.config;
    let image_id = config.image_id.to_string();
    let image_id = image_id.split(':').next_back().unwrap_or_default();
    [
        ("ID", config.short_id()),
        ("FullID", handle.id()),
        ("Name", handle.name()),
        ("ImageName", &config.options.image),
        ("ImageID", image_id.get(..12).unwrap_or(image_id)),
        ("ImageFullID", image_id),
        ("DaemonName", "qengine"),
    ]
    .into_iter()
    .fold(tag.to_owned(), |text, (name, value)| {
        text.replace(&format!("{{{{.{name}}}}}"), value)
    })
}

/// Fields of the journal have capital letters, digits and underscores only.
fn field_name(name: &str) -> String {
    name.chars()
        .map(|character| match character.to_ascii_uppercase() {
            letter @ ('A'..='Z' | '0'..='9') => letter,
            _ => '_',
        })
        .collect::<String>()
        .trim_start_matches('_')
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_driver_has_its_options() {
        for (driver, option, is_good) in [
            ("json-file", "max-size=10m", true),
            ("local", "max-file=3", true),
            ("json-file", "max-size=x", false),
            ("k8s-file", "max-file=0", false),
            ("journald", "tag=x", true),
            ("journald", "max-size=10m", false),
            ("none", "tag=x", false),
            ("json-file", "colour=red", false),
        ] {
            let (key, value) = option.split_once('=').unwrap();
            let options = BTreeMap::from([(key.to_owned(), value.to_owned())]);
            let driver: Driver = driver.parse().unwrap();
            assert_eq!(
                driver.check(&options).is_ok(),
                is_good,
                "{driver:?} {option}"
            );
        }
        assert!("syslog".parse::<Driver>().is_err());
        assert_eq!(field_name("com.example/tier-1"), "COM_EXAMPLE_TIER_1");
    }
}
