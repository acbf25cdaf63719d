//! Which containers a listing is about: docker's `--filter KEY=VALUE`, understood and applied.
//!
//! Values of one key are alternatives, except those of `label`, all of which have to be there; keys add up. `id` and
//! `name` are regular expressions, as in docker.

use std::collections::BTreeMap;

use jiff::Timestamp;
use regex::Regex;

use super::find::Handle;
use super::live::Live;
use super::model::State;
use super::restart::Policy;
use super::{Error, Result};
use crate::image;
use crate::network::{self, Mode, Protocol};
use crate::store::Store;

/// Keys that are understood.
const KEYS: [&str; 17] = [
    "ancestor",
    "before",
    "exited",
    "expose",
    "health",
    "id",
    "label",
    "label!",
    "name",
    "network",
    "publish",
    "restart-policy",
    "should-start-on-boot",
    "since",
    "status",
    "until",
    "volume",
];

/// Docker's words for what a container may be doing.
const STATUSES: [&str; 7] = [
    "created",
    "restarting",
    "running",
    "removing",
    "paused",
    "exited",
    "dead",
];

/// What a container has to be to be listed.
#[derive(Debug, Default)]
pub struct Filter {
    ids: Vec<Regex>,
    names: Vec<Regex>,
    labels: Vec<(String, Option<String>)>,
    absent_labels: Vec<(String, Option<String>)>,
    policies: Vec<String>,
    on_boot: Option<bool>,
    statuses: Vec<String>,
    exits: Vec<i32>,
    health: Vec<String>,
    ancestors: Vec<Ancestor>,
    before: Option<Timestamp>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    networks: Vec<String>,
    volumes: Vec<String>,
    published: Vec<Ports>,
    exposed: Vec<Ports>,
}

/// An image, and the layers that those made of it begin with.
#[derive(Debug)]
struct Ancestor {
    id: bundle_tools::Digest,
    layers: Vec<bundle_tools::Digest>,
}

/// `8000-8080/tcp`
#[derive(Debug, PartialEq, Eq)]
struct Ports {
    first: u16,
    last: u16,
    protocol: Option<Protocol>,
}

impl Filter {
    /// Understands `KEY=VALUE` words; names of containers and images are looked up at once.
    ///
    /// # Errors
    /// [`Error::Invalid`] when one is not understood, [`Error::NotFound`] when the container of `before` or `since` is
    /// not there.
    pub fn parse(store: &Store, words: &[String]) -> Result<Filter> {
        let mut filter = Filter::default();
        for word in words {
            let Some((key, value)) = word.split_once('=') else {
                return Err(Error::Invalid(format!(
                    "invalid filter {word:?}: expected KEY=VALUE"
                )));
            };
            filter.add(store, key.trim(), value.trim())?;
        }
        Ok(filter)
    }

    fn add(&mut self, store: &Store, key: &str, value: &str) -> Result<()> {
        let invalid =
            |reason: &str| Error::Invalid(format!("invalid filter {key}={value}: {reason}"));
        let expression =
            || Regex::new(value).map_err(|_| invalid("the value is no regular expression"));
        let ports =
            || Ports::parse(value).ok_or_else(|| invalid("expected PORT[-PORT][/PROTOCOL]"));
        match key {
            "id" => self.ids.push(expression()?),
            "name" => self.names.push(expression()?),
            "label" => self.labels.push(label(value)),
            "label!" => self.absent_labels.push(label(value)),
            "restart-policy" => {
                value
                    .parse::<Policy>()
                    .map_err(|error| invalid(&error.to_string()))?;
                self.policies.push(value.to_owned());
            }
            "should-start-on-boot" => {
                let wanted = value
                    .parse()
                    .map_err(|_| invalid("it takes true or false"))?;
                self.on_boot = Some(wanted);
            }
            "until" => {
                let time = crate::store::time::parse(value).map_err(|error| invalid(&error))?;
                self.until = Some(self.until.map_or(time, |other| other.min(time)));
            }
            "status" if STATUSES.contains(&value) => self.statuses.push(value.to_owned()),
            "status" => return Err(invalid(&format!("it takes {}", STATUSES.join(", ")))),
            "exited" => self.exits.push(
                value
                    .parse()
                    .map_err(|_| invalid("expected an exit code"))?,
            ),
            "health" if ["starting", "healthy", "unhealthy", "none"].contains(&value) => {
                self.health.push(value.to_owned());
            }
            "health" => return Err(invalid("it takes starting, healthy, unhealthy, none")),
            "ancestor" => {
                // One that is not there has no containers; that is no error.
                let image = image::find(store, value)?;
                self.ancestors
                    .push(image.map_or_else(Ancestor::nobody, |image| Ancestor {
                        id: image.id,
                        layers: image.layers,
                    }));
            }
            "before" => {
                let time = Handle::find(store, value)?.config.created;
                self.before = Some(self.before.map_or(time, |other| other.min(time)));
            }
            "since" => {
                let time = Handle::find(store, value)?.config.created;
                self.since = Some(self.since.map_or(time, |other| other.max(time)));
            }
            "network" => self.networks.push(
                // By id as well; containers remember names.
                network::find(store, value).map_or_else(|_| value.to_owned(), |found| found.name),
            ),
            "volume" => self.volumes.push(value.to_owned()),
            "publish" => self.published.push(ports()?),
            "expose" => self.exposed.push(ports()?),
            _ => {
                return Err(Error::Invalid(format!(
                    "unknown filter {key:?}: there are {}",
                    KEYS.join(", ")
                )));
            }
        }
        Ok(())
    }

    /// Whether it asks for containers that may not run, so that a listing has to look at all of them.
    #[must_use]
    pub fn asks_for_ended(&self) -> bool {
        !self.statuses.is_empty() || !self.exits.is_empty()
    }

    /// Whether the container is wanted.
    #[must_use]
    pub fn accepts(&self, handle: &Handle, state: &State, live: Live) -> bool {
        let config = &handle.config;
        let any =
            |list: &[Regex], text: &str| list.is_empty() || list.iter().any(|it| it.is_match(text));
        any(&self.ids, handle.id())
            && (any(&self.names, handle.name()) || any(&self.names, &format!("/{}", handle.name())))
            && self.labels_fit(handle)
            && (self.statuses.is_empty() || self.statuses.iter().any(|it| it == live.word()))
            && (self.exits.is_empty() || self.exit_fits(state, live))
            && (self.health.is_empty() || self.health.iter().any(|it| it == "none"))
            && (self.ancestors.is_empty()
                || self.ancestors.iter().any(|ancestor| {
                    ancestor.id == config.image_id || ancestor.is_below(&config.layers)
                }))
            && self.before.is_none_or(|time| config.created < time)
            && self.since.is_none_or(|time| config.created > time)
            && self.until.is_none_or(|time| config.created < time)
            && (self.policies.is_empty() || self.policy_fits(handle))
            && self
                .on_boot
                .is_none_or(|wanted| config.options.restart.wants_after_boot(state) == wanted)
            && (self.networks.is_empty() || self.network_fits(handle, state))
            && (self.volumes.is_empty() || self.volume_fits(handle))
            && (self.published.is_empty() || self.published_fits(handle))
            && (self.exposed.is_empty() || self.exposed_fits(handle))
    }

    fn labels_fit(&self, handle: &Handle) -> bool {
        if self.labels.is_empty() && self.absent_labels.is_empty() {
            return true;
        }
        let labels = labels(handle);
        let is_there = |(key, value): &(String, Option<String>)| {
            labels
                .get(key)
                .is_some_and(|have| value.as_ref().is_none_or(|wanted| have == wanted))
        };
        self.labels.iter().all(is_there) && !self.absent_labels.iter().any(is_there)
    }

    /// `on-failure` is any count, `on-failure:3` this one.
    fn policy_fits(&self, handle: &Handle) -> bool {
        let policy = handle.config.options.restart;
        self.policies
            .iter()
            .any(|wanted| wanted == policy.name() || wanted.parse().ok() == Some(policy))
    }

    fn exit_fits(&self, state: &State, live: Live) -> bool {
        live == Live::Exited
            && state
                .exit_code
                .is_some_and(|code| self.exits.contains(&code))
    }

    fn network_fits(&self, handle: &Handle, state: &State) -> bool {
        let joined = state.network.as_ref().is_some_and(|setup| {
            let mut names = setup
                .attachments
                .iter()
                .map(|attachment| &attachment.network);
            names.any(|name| self.networks.contains(name))
        });
        joined
            || match &handle.config.options.network {
                Mode::None => self.networks.iter().any(|name| name == "none"),
                Mode::Host => self.networks.iter().any(|name| name == "host"),
                Mode::Container(id) => self.networks.contains(&format!("container:{id}")),
                Mode::Networks(endpoints) => endpoints
                    .iter()
                    .any(|endpoint| self.networks.contains(&endpoint.network)),
            }
    }

    fn volume_fits(&self, handle: &Handle) -> bool {
        handle.config.options.volumes.iter().any(|volume| {
            let source = volume.source.name();
            self.volumes
                .iter()
                .any(|wanted| Some(wanted.as_str()) == source || *wanted == volume.destination)
        })
    }

    fn published_fits(&self, handle: &Handle) -> bool {
        handle.config.options.ports.iter().any(|port| {
            self.published
                .iter()
                .any(|wanted| wanted.has(port.container_port, port.protocol))
        })
    }

    fn exposed_fits(&self, handle: &Handle) -> bool {
        let image = &handle.config.image_config.config.exposed_ports;
        let of_image = image
            .keys()
            .chain(&handle.config.options.expose)
            .filter_map(|text| Ports::parse(text));
        of_image
            .filter(|port| port.first == port.last)
            .map(|port| (port.first, port.protocol.unwrap_or_default()))
            .chain(
                handle
                    .config
                    .options
                    .ports
                    .iter()
                    .map(|port| (port.container_port, port.protocol)),
            )
            .any(|(port, protocol)| self.exposed.iter().any(|wanted| wanted.has(port, protocol)))
    }
}

impl Ancestor {
    fn nobody() -> Ancestor {
        Ancestor {
            id: bundle_tools::Digest::sha256_of(b""),
            layers: Vec::new(),
        }
    }

    fn is_below(&self, layers: &[bundle_tools::Digest]) -> bool {
        // Chain ids say all that lies below.
        self.layers.last().is_some_and(|last| layers.contains(last))
    }
}

impl Ports {
    fn parse(text: &str) -> Option<Ports> {
        let (range, protocol) = match text.split_once('/') {
            Some((range, protocol)) => (range, Some(protocol.parse().ok()?)),
            None => (text, None),
        };
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse().ok()?, last.parse().ok()?);
        (first <= last).then_some(Ports {
            first,
            last,
            protocol,
        })
    }

    /// Without a protocol it is TCP, as everywhere.
    fn has(&self, port: u16, protocol: Protocol) -> bool {
        (self.first..=self.last).contains(&port) && self.protocol.unwrap_or_default() == protocol
    }
}

/// The labels of the image and of the options together.
#[must_use]
pub fn labels(handle: &Handle) -> BTreeMap<String, String> {
    let mut labels = handle.config.image_config.config.labels.clone();
    labels.extend(handle.config.options.labels.clone());
    labels
}

/// `KEY` or `KEY=VALUE`.
fn label(text: &str) -> (String, Option<String>) {
    match text.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => (text.to_owned(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_ranges() {
        let range = Ports::parse("8000-8080/udp").unwrap();
        assert!(range.has(8000, Protocol::Udp) && range.has(8080, Protocol::Udp));
        assert!(!range.has(8081, Protocol::Udp) && !range.has(8000, Protocol::Tcp));
        assert!(Ports::parse("80").unwrap().has(80, Protocol::Tcp));
        for bad in ["", "x", "80-", "90-80", "80/icmp", "70000"] {
            assert_eq!(Ports::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn bad_filters_say_what_there_is() {
        let directory = tempfile::tempdir().unwrap();
        let store =
            Store::open(directory.path().join("root"), directory.path().join("run")).unwrap();
        for (word, message) in [
            ("name", "invalid filter \"name\": expected KEY=VALUE"),
            (
                "status=dozing",
                "invalid filter status=dozing: it takes created, restarting, running, removing, paused, exited, dead",
            ),
            (
                "name=(",
                "invalid filter name=(: the value is no regular expression",
            ),
            ("exited=x", "invalid filter exited=x: expected an exit code"),
            ("before=nosuch", "no such container: nosuch"),
        ] {
            let error = Filter::parse(&store, &[word.to_owned()]).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
        let unknown = Filter::parse(&store, &["colour=red".to_owned()]).unwrap_err();
        assert!(unknown.to_string().starts_with("unknown filter \"colour\""));
    }
}
