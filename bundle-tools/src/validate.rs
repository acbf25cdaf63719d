//! What is wrong with a bundle.
//!
//! The configuration is checked as JSON, not as a type, so that every finding has
//! the place it is about, one finding does not hide the next, and fields newer than
//! this program pass. An error is what the specification forbids or runtimes refuse; a
//! warning is what they ignore, or what is hardly meant.
//!
//! Left out: what only the machine that runs the bundle can know, such as whether its
//! kernel has a capability.
//!
//! Governing text: runtime-spec, bundle.md, config.md, config-linux.md.

mod linux;
mod process;
mod seccomp;

pub use linux::sysctl_namespace;

use std::fmt;
use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value};

/// The most that is read of a `config.json`, in bytes.
const MAX_CONFIG: u64 = 32 << 20;

/// How bad a problem is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Severity {
    /// A runtime will ignore it, or it is unwise.
    Warning,
    /// A runtime must or will refuse it.
    Error,
}

/// One finding.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    /// JSON pointer into `config.json`; empty for the bundle itself.
    pub path: String,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, in one line.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        write!(f, "{severity}: ")?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// Checks a bundle directory.
#[must_use]
pub fn validate(bundle: &Path) -> Vec<Problem> {
    let mut findings = Findings::default();
    match read_config(bundle) {
        Ok(config) => {
            check(&config, &mut findings);
            root_exists(bundle, &config, &mut findings);
        }
        Err(message) => findings.error("", message),
    }
    findings.0
}

/// Checks a configuration alone, wherever its root file system may be.
#[must_use]
pub fn validate_config(config: &Value) -> Vec<Problem> {
    let mut findings = Findings::default();
    check(config, &mut findings);
    findings.0
}

fn read_config(bundle: &Path) -> Result<Value, String> {
    let path = bundle.join("config.json");
    let failed = |error: std::io::Error| format!("read {}: {error}", path.display());
    let file = std::fs::File::open(&path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(MAX_CONFIG + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > MAX_CONFIG {
        return Err(format!(
            "{} is larger than {MAX_CONFIG} bytes",
            path.display()
        ));
    }
    serde_json::from_slice(&bytes)
        .map_err(|error| format!("{} is not JSON: {error}", path.display()))
}

/// What was found so far.
#[derive(Debug, Default)]
struct Findings(Vec<Problem>);

impl Findings {
    fn error(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.add(path.into(), Severity::Error, message.into());
    }

    fn warning(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.add(path.into(), Severity::Warning, message.into());
    }

    fn add(&mut self, path: String, severity: Severity, message: String) {
        self.0.push(Problem {
            path,
            severity,
            message,
        });
    }

    // The following return the value where it has the expected type. Absent
    // is fine, and so is null, which Go programs write for it.

    fn object<'v>(
        &mut self,
        parent: &'v Value,
        at: &str,
        key: &str,
    ) -> Option<&'v Map<String, Value>> {
        let value = present(parent, key)?;
        value
            .as_object()
            .or_else(|| self.mistyped(at, key, "an object"))
    }

    fn array<'v>(&mut self, parent: &'v Value, at: &str, key: &str) -> Option<&'v Vec<Value>> {
        let value = present(parent, key)?;
        value
            .as_array()
            .or_else(|| self.mistyped(at, key, "an array"))
    }

    fn text<'v>(&mut self, parent: &'v Value, at: &str, key: &str) -> Option<&'v str> {
        let value = present(parent, key)?;
        value
            .as_str()
            .or_else(|| self.mistyped(at, key, "a string"))
    }

    fn integer(&mut self, parent: &Value, at: &str, key: &str) -> Option<i128> {
        let value = present(parent, key)?;
        let number = value.as_i64().map(i128::from);
        number
            .or_else(|| value.as_u64().map(i128::from))
            .or_else(|| self.mistyped(at, key, "an integer"))
    }

    fn boolean(&mut self, parent: &Value, at: &str, key: &str) -> Option<bool> {
        let value = present(parent, key)?;
        value
            .as_bool()
            .or_else(|| self.mistyped(at, key, "true or false"))
    }

    /// The strings of an array, with their places.
    fn texts<'v>(&mut self, parent: &'v Value, at: &str, key: &str) -> Vec<(String, &'v str)> {
        let items = self.array(parent, at, key).map_or(&[][..], Vec::as_slice);
        let mut texts = Vec::new();
        for (number, item) in items.iter().enumerate() {
            let place = format!("{at}/{key}/{number}");
            match item.as_str() {
                Some(text) => texts.push((place, text)),
                None => self.error(place, "must be a string"),
            }
        }
        texts
    }

    /// Checks that an integer is within bounds.
    fn within(
        &mut self,
        parent: &Value,
        at: &str,
        key: &str,
        bounds: std::ops::RangeInclusive<i128>,
    ) {
        if let Some(number) = self.integer(parent, at, key)
            && !bounds.contains(&number)
        {
            let (low, high) = bounds.into_inner();
            self.error(
                format!("{at}/{key}"),
                format!("{number} is not within {low} and {high}"),
            );
        }
    }

    /// Checks that a string is one of those known.
    fn one_of(&mut self, at: &str, text: &str, what: &str, known: &[&str]) -> bool {
        let found = known.contains(&text);
        if !found {
            self.error(at, format!("{text:?} is no {what}"));
        }
        found
    }

    fn absolute(&mut self, at: &str, path: &str) {
        if !path.starts_with('/') {
            self.error(at, format!("{path:?} is not an absolute path"));
        }
    }

    fn mistyped<T>(&mut self, at: &str, key: &str, expected: &str) -> Option<T> {
        self.error(format!("{at}/{key}"), format!("must be {expected}"));
        None
    }
}

fn present<'v>(parent: &'v Value, key: &str) -> Option<&'v Value> {
    parent.get(key).filter(|value| !value.is_null())
}

/// A key as a part of a JSON pointer.
fn escape(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

fn check(config: &Value, findings: &mut Findings) {
    if !config.is_object() {
        findings.error("", "the configuration must be an object");
        return;
    }
    version(config, findings);
    if findings.object(config, "", "root").is_some() {
        let root = &config["root"];
        if findings
            .text(root, "/root", "path")
            .unwrap_or_default()
            .is_empty()
        {
            findings.error("/root/path", "is required, and must not be empty");
        }
        findings.boolean(root, "/root", "readonly");
    } else if present(config, "root").is_none() {
        findings.error("/root", "is required");
    }
    let namespaces = linux::check(config, findings);
    if present(config, "process").is_none() {
        findings.warning(
            "/process",
            "is missing: the container can be created, but not started",
        );
    } else if findings.object(config, "", "process").is_some() {
        process::check(config, findings);
    }
    for key in ["hostname", "domainname"] {
        let set = findings
            .text(config, "", key)
            .is_some_and(|name| !name.is_empty());
        if set && !namespaces.contains(&"uts") {
            findings.error(format!("/{key}"), "needs a UTS namespace of its own");
        }
    }
    mounts(config, findings);
    hooks(config, findings);
    for (key, value) in findings
        .object(config, "", "annotations")
        .into_iter()
        .flatten()
    {
        let at = format!("/annotations/{}", escape(key));
        if key.is_empty() {
            findings.error(at.clone(), "an annotation's key must not be empty");
        }
        if !value.is_string() {
            findings.error(at, "must be a string");
        }
    }
}

fn version(config: &Value, findings: &mut Findings) {
    let Some(version) = findings.text(config, "", "ociVersion") else {
        if present(config, "ociVersion").is_none() {
            findings.error("/ociVersion", "is required");
        }
        return;
    };
    let core = version.split(['-', '+']).next().unwrap_or_default();
    let numbers: Vec<Option<u64>> = core.split('.').map(|part| part.parse().ok()).collect();
    match numbers[..] {
        [Some(1), Some(_), Some(_)] => {}
        [Some(major), Some(_), Some(_)] => findings.error(
            "/ociVersion",
            format!("major version {major} is not supported, only 1 is"),
        ),
        _ => findings.error("/ociVersion", format!("{version:?} is no semantic version")),
    }
}

fn root_exists(bundle: &Path, config: &Value, findings: &mut Findings) {
    let Some(path) = config.pointer("/root/path").and_then(Value::as_str) else {
        return;
    };
    if path.is_empty() {
        return;
    }
    let rootfs = bundle.join(path);
    match std::fs::metadata(&rootfs) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => findings.error(
            "/root/path",
            format!("{} is no directory", rootfs.display()),
        ),
        Err(error) => findings.error("/root/path", format!("{}: {error}", rootfs.display())),
    }
}

fn mounts(config: &Value, findings: &mut Findings) {
    let mounts = findings
        .array(config, "", "mounts")
        .map_or(&[][..], Vec::as_slice);
    for (number, mount) in mounts.iter().enumerate() {
        let at = format!("/mounts/{number}");
        if !mount.is_object() {
            findings.error(at, "must be an object");
            continue;
        }
        match findings.text(mount, &at, "destination") {
            None | Some("") => findings.error(format!("{at}/destination"), "is required"),
            Some(path) => {
                findings.absolute(&format!("{at}/destination"), path);
                if path.split('/').any(|part| part == "..") {
                    findings.warning(format!("{at}/destination"), "has .. in it");
                }
            }
        }
        let options = findings.texts(mount, &at, "options");
        let has = |wanted: &str| options.iter().any(|(_, option)| *option == wanted);
        let kind = findings.text(mount, &at, "type").unwrap_or_default();
        let source = findings.text(mount, &at, "source").unwrap_or_default();
        let bind = kind == "bind" || has("bind") || has("rbind");
        if bind && source.is_empty() {
            findings.error(format!("{at}/source"), "a bind mount needs a source");
        }
        let filesystem = !bind && !has("remount") && !PROPAGATION.iter().any(|flag| has(flag));
        if filesystem && kind.is_empty() {
            findings.error(
                format!("{at}/type"),
                "is required for what is no bind mount",
            );
        }
        for (one, other) in [
            ("ro", "rw"),
            ("suid", "nosuid"),
            ("dev", "nodev"),
            ("exec", "noexec"),
        ] {
            if has(one) && has(other) {
                findings.warning(
                    format!("{at}/options"),
                    format!("both {one} and {other}: the last one counts"),
                );
            }
        }
    }
}

/// Propagation flags, which may stand alone in a mount's options.
const PROPAGATION: [&str; 8] = [
    "shared",
    "rshared",
    "slave",
    "rslave",
    "private",
    "rprivate",
    "unbindable",
    "runbindable",
];

fn hooks(config: &Value, findings: &mut Findings) {
    const KINDS: [&str; 6] = [
        "prestart",
        "createRuntime",
        "createContainer",
        "startContainer",
        "poststart",
        "poststop",
    ];
    if findings.object(config, "", "hooks").is_none() {
        return;
    }
    let hooks = &config["hooks"];
    for kind in KINDS {
        let list = findings
            .array(hooks, "/hooks", kind)
            .map_or(&[][..], Vec::as_slice);
        for (number, hook) in list.iter().enumerate() {
            let at = format!("/hooks/{kind}/{number}");
            match findings.text(hook, &at, "path") {
                None => findings.error(format!("{at}/path"), "is required"),
                Some(path) => {
                    findings.absolute(&format!("{at}/path"), path);
                    // This one alone runs inside the container.
                    if kind != "startContainer"
                        && path.starts_with('/')
                        && !Path::new(path).exists()
                    {
                        findings
                            .warning(format!("{at}/path"), format!("{path} does not exist here"));
                    }
                }
            }
            findings.texts(hook, &at, "args");
            process::environment(hook, &at, findings);
            findings.within(hook, &at, "timeout", 1..=i128::from(i32::MAX));
        }
    }
}

#[cfg(test)]
mod tests;
