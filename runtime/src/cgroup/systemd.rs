//! The systemd driver: systemd makes a container's cgroup, as that of a scope of its own.
//!
//! In the order of a container's life: [`Place::new`] reads `cgroupsPath`, [`Start::run`] has the scope started with the init
//! process in it and waits until that is done, [`Unit::update`] changes limits, [`Unit::stop`] takes the scope away with what
//! is left in it. systemd knows a part of the limits only, so the control files are written all the same, after it. A scope
//! cannot be without a process: on cgroup v2 too the process comes first here, and its cgroup after it.
//!
//! The client for the bus is our own ([`bus`], [`wire`]): the few calls need no thread and no executor, which every library
//! for it brings along. Behaviour follows runc's docs/systemd.md. Left out: cgroups of services, and units of other users.

mod annotation;
mod bus;
mod properties;
mod unit;
mod wire;

use std::path::Path;

use rustix::process::Pid;

pub(super) use annotation::properties as annotated;
use bus::Bus;
use properties::property;
pub(super) use properties::{Property, round_quota};
pub(super) use unit::Place;
pub(crate) use unit::Unit;
use wire::Value;

use super::device::Rules;
use crate::spec::resources::Resources;

/// `Result` of this module.
pub(super) type Result<T, E = Error> = std::result::Result<T, E>;

/// Why systemd could not be asked, or would not.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("systemd not running on this host, cannot use systemd cgroups manager")]
    NotRunning,
    #[error(
        "failed to connect to dbus{}: {}",
        if *.user { " (hint: for rootless containers a bus of the user's own is needed, as the package dbus-user-session brings it)" } else { "" },
        .failures.join("; ")
    )]
    Connect { user: bool, failures: Vec<String> },
    #[error("talk to systemd by {address}")]
    Io {
        address: String,
        source: std::io::Error,
    },
    #[error("the answer of systemd by {address} is not as expected")]
    Malformed { address: String },
    #[error("{method}: {text} ({name})")]
    Refused {
        method: String,
        name: String,
        text: String,
    },
    #[error("error creating systemd unit `{unit}`: got `{result}`")]
    Job { unit: String, result: String },
    #[error("unable to start unit {unit:?}")]
    Start { unit: String, source: Box<Error> },
    #[error("unable to set unit properties")]
    Update(#[source] Box<Error>),
    #[error(
        "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got {0:?} instead"
    )]
    Path(String),
    #[error("invalid slice name: {0}")]
    SliceName(String),
    #[error("invalid unit name {0:?}")]
    UnitName(String),
    #[error("annotation {0}: not a property that a container may set")]
    AnnotationName(String),
    #[error("annotation {annotation} value parse error: {problem}")]
    AnnotationValue {
        annotation: String,
        problem: &'static str,
    },
    #[error("cannot set {property}: {list:?} is not a list such as 0-2,5")]
    List { property: String, list: String },
    #[error("unified resource {name:?} value invalid: {value:?}")]
    Unified { name: String, value: String },
    #[error(transparent)]
    Limit(Box<super::Error>),
}

impl Error {
    /// Whether systemd answered with an error of this name.
    fn is(&self, wanted: &str) -> bool {
        matches!(self, Self::Refused { name, .. } if name.ends_with(wanted))
    }
}

/// Refuses a host whose process 1 is not systemd.
pub(super) fn check_running() -> Result<()> {
    match Path::new("/run/systemd/system").is_dir() {
        true => Ok(()),
        false => Err(Error::NotRunning),
    }
}

/// The cgroup of the user's own systemd, below which its units are.
pub(super) fn control_group_of_user() -> Result<String> {
    Bus::connect(true)?.manager_property("ControlGroup")
}

/// A unit that is to be started.
#[derive(Debug, Clone)]
pub(super) struct Start {
    pub(super) place: Place,
    /// What annotations ask for.
    pub(super) annotated: Vec<Property>,
    pub(super) resources: Resources,
    pub(super) devices: Rules,
    /// Whether the host has cgroup v2 alone.
    pub(super) v2: bool,
}

impl Start {
    /// The unit.
    pub(super) fn unit(&self) -> &Unit {
        &self.place.unit
    }

    /// Whether it is a slice, which takes no process when it starts.
    pub(super) fn is_slice(&self) -> bool {
        self.place.unit.is_slice()
    }

    /// Has the unit started with a process in it.
    pub(super) fn run(&self, pid: Pid) -> Result<()> {
        let unit = &self.place.unit;
        let failed = |source| Error::Start {
            unit: unit.name.clone(),
            source: Box::new(source),
        };
        let mut bus = Bus::connect(unit.user)?;
        let version = version(&mut bus)?;
        let arguments = [
            Value::text(unit.name.as_str()),
            Value::text("replace"),
            list(self.properties(pid, version)?),
            Value::Array("(sa(sv))".to_owned(), Vec::new()),
        ];
        let mut started = bus.job("StartTransientUnit", &arguments);
        if started.as_ref().is_err_and(|error| error.is("UnitExists")) {
            if unit.is_slice() {
                return Ok(());
            }
            // One that has failed stays until somebody has taken notice.
            if let Err(error) = bus.manager("ResetFailedUnit", &arguments[..1]) {
                log::warn!("unable to reset failed unit: {error}");
            }
            started = bus.job("StartTransientUnit", &arguments);
        }
        match started.map_err(failed)? {
            result if result == "done" => Ok(()),
            result => {
                // What is told is why it failed to start.
                let _ = bus.manager("ResetFailedUnit", &arguments[..1]);
                Err(Error::Job {
                    unit: unit.name.clone(),
                    result,
                })
            }
        }
    }

    /// All properties. Of two of the same name the later one holds: the configuration's over an annotation's.
    fn properties(&self, pid: Pid, version: u32) -> Result<Vec<Property>> {
        let (unit, slice) = (&self.place.unit, self.place.slice.as_str());
        let on = || Value::Bool(true);
        let mut out = vec![property(
            "Description",
            Value::text(format!("qrun container {}", self.place.name)),
        )];
        if unit.is_slice() {
            let parent = Value::Array("s".to_owned(), vec![Value::text(slice)]);
            out.push(property("Wants", parent));
        } else {
            let pid = Value::U32(pid.as_raw_nonzero().get().unsigned_abs());
            out.push(property("Slice", Value::text(slice)));
            out.push(property("Delegate", on()));
            out.push(property("PIDs", Value::Array("u".to_owned(), vec![pid])));
        }
        let io = if self.v2 {
            "IOAccounting"
        } else {
            "BlockIOAccounting"
        };
        for name in ["MemoryAccounting", "CPUAccounting", io, "TasksAccounting"] {
            out.push(property(name, on()));
        }
        out.push(property("DefaultDependencies", Value::Bool(false)));
        out.extend(self.annotated.iter().cloned());
        out.extend(properties::at_start(&self.resources, version));
        out.extend(properties::devices(&self.devices, self.v2));
        out.extend(properties::limits(&self.resources, version, self.v2)?);
        Ok(out)
    }
}

/// `a(sv)`
fn list(properties: Vec<Property>) -> Value {
    let pair = |(name, value): Property| {
        Value::Struct(vec![Value::Text(name), Value::Variant(Box::new(value))])
    };
    Value::Array(
        "(sv)".to_owned(),
        properties.into_iter().map(pair).collect(),
    )
}

/// systemd's version: `252` of `252.39-1~deb12u1` or `v252`.
fn version(bus: &mut Bus) -> Result<u32> {
    Ok(parse_version(&bus.manager_property("Version")?))
}

/// 0 where nothing can be read out of it, which counts as old.
fn parse_version(text: &str) -> u32 {
    let text = text.trim_start_matches(['"', 'v']);
    let end = text
        .find(|character: char| !character.is_ascii_digit())
        .unwrap_or(text.len());
    text[..end].parse().unwrap_or(0)
}

impl Unit {
    fn argument(&self) -> Value {
        Value::text(self.name.as_str())
    }

    /// Changes the limits that systemd has properties for.
    pub(super) fn update(&self, resources: &Resources, v2: bool) -> Result<()> {
        let mut bus = Bus::connect(self.user)?;
        let version = version(&mut bus)?;
        let properties = properties::limits(resources, version, v2)?;
        if properties.is_empty() {
            return Ok(());
        }
        // For as long as the unit is there: nothing is written to disk.
        let for_now = Value::Bool(true);
        bus.manager(
            "SetUnitProperties",
            &[self.argument(), for_now, list(properties)],
        )
        .map_err(|source| Error::Update(Box::new(source)))?;
        Ok(())
    }

    /// Puts a process into the unit's cgroup or one below it, as users cannot themselves when the process comes from outside
    /// of what is theirs.
    pub(super) fn attach(&self, directory: &Path, pid: Pid) -> Result<()> {
        let below = self.below(directory).unwrap_or_else(|| "/".into());
        let pid = Value::U32(pid.as_raw_nonzero().get().unsigned_abs());
        let arguments = [
            self.argument(),
            Value::text(below.to_string_lossy()),
            Value::Array("u".to_owned(), vec![pid]),
        ];
        Bus::connect(self.user)?.manager("AttachProcessesToUnit", &arguments)?;
        Ok(())
    }

    /// Has the unit stopped; fine when it is gone, as a scope is with its last process.
    pub(super) fn stop(&self) -> Result<()> {
        let mut bus = Bus::connect(self.user)?;
        match bus.job("StopUnit", &[self.argument(), Value::text("replace")]) {
            Ok(result) if result == "done" => {}
            Ok(result) => log::warn!(
                "error removing unit `{}`: got `{result}`. Continuing...",
                self.name
            ),
            Err(error) if error.is("NoSuchUnit") => {}
            Err(error) => return Err(error),
        }
        // One that has failed is removed only after this; there need not be one.
        let _ = bus.manager("ResetFailedUnit", &[self.argument()]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for (text, version) in [
            ("252.39-1~deb12u1", 252),
            ("v219", 219),
            ("\"v258~rc1\"", 258),
            ("strange", 0),
        ] {
            assert_eq!(parse_version(text), version, "{text}");
        }
    }

    #[test]
    fn the_configuration_comes_after_the_annotations() {
        let start = Start {
            place: Place::new(Some("a.slice:p:n"), "id", false).unwrap(),
            annotated: vec![property("TasksMax", Value::U64(5))],
            resources: serde_json::from_str(r#"{"pids":{"limit":9}}"#).unwrap(),
            devices: Rules::new(&[]).unwrap(),
            v2: true,
        };
        let properties = start.properties(Pid::from_raw(7).unwrap(), 252).unwrap();
        let at = |wanted: &Property| properties.iter().position(|property| property == wanted);
        let (annotated, configured) = (
            at(&property("TasksMax", Value::U64(5))),
            at(&property("TasksMax", Value::U64(9))),
        );
        assert!(
            annotated.is_some() && annotated < configured,
            "{properties:?}"
        );
        let pids = Value::Array("u".to_owned(), vec![Value::U32(7)]);
        for expected in [
            property("PIDs", pids),
            property("Slice", Value::text("a.slice")),
            property("Delegate", Value::Bool(true)),
            property("IOAccounting", Value::Bool(true)),
        ] {
            assert!(at(&expected).is_some(), "{expected:?}");
        }
    }
}
