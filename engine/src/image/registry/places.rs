//! Where an image may be fetched from, by the machine's configuration: mirrors, other locations, registries without TLS.
//!
//! Two files are known. containers-registries.conf(5), version 2, as podman and skopeo read it: `registry` tables with
//! `prefix`, `location`, `insecure`, `blocked` and `mirror`. And docker's `daemon.json`: `registry-mirrors` (of Docker
//! Hub) and `insecure-registries`. What is left out: `unqualified-search-registries` and aliases, since a name without
//! a registry is one of Docker Hub here, as in docker.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Use;
use crate::image::Reference;

/// Where the system's configuration lies.
const SYSTEM: &str = "/etc/containers";
/// The variable that names another file, instead of all others.
const VARIABLE: &str = "CONTAINERS_REGISTRIES_CONF";
/// Docker's configuration.
const DOCKER: &str = "/etc/docker/daemon.json";

/// The configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file can't be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file is malformed.
    #[error("{path} is malformed")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and how.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A location is none.
    #[error(
        "the configuration of registries sends {reference} to {location:?}, which is no registry"
    )]
    Location {
        /// What was asked for.
        reference: String,
        /// Where to.
        location: String,
    },
    /// The administrator does not want it.
    #[error("registry {prefix} is blocked by the configuration of registries")]
    Blocked {
        /// The entry that says so.
        prefix: String,
    },
}

/// A place to look for an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// The image there.
    pub(super) reference: Reference,
    /// Whether it may be reached without TLS, or with any certificate.
    pub(super) insecure: bool,
    /// Whether it is only a copy, and others are to be tried when it fails.
    pub(super) mirror: bool,
}

/// One file in the form of containers-registries.conf(5).
#[derive(Debug, Default, Deserialize)]
struct File {
    #[serde(default)]
    registry: Vec<Entry>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Entry {
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default, rename = "mirror-by-digest-only")]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<Mirror>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Mirror {
    #[serde(default)]
    location: String,
    #[serde(default)]
    insecure: bool,
    /// `all`, `digest-only` or `tag-only`.
    #[serde(default, rename = "pull-from-mirror")]
    pull: String,
}

/// Docker's configuration, as far as it is about registries.
#[derive(Debug, Default, Deserialize)]
struct Docker {
    #[serde(default, rename = "registry-mirrors")]
    mirrors: Vec<String>,
    #[serde(default, rename = "insecure-registries")]
    insecure: Vec<String>,
}

/// The places to try for a reference, in this order.
pub(super) fn places(reference: &Reference, purpose: Use) -> Result<Vec<Place>, Error> {
    let docker = read_docker(Path::new(DOCKER))?;
    let mut entries = Vec::new();
    for path in files()? {
        entries.extend(read(&path)?);
    }
    choose(reference, purpose, &entries, &docker)
}

fn choose(
    reference: &Reference,
    purpose: Use,
    entries: &[Entry],
    docker: &Docker,
) -> Result<Vec<Place>, Error> {
    let mut places = Vec::new();
    let own = Place {
        reference: reference.clone(),
        insecure: docker.is_insecure(reference.registry()),
        mirror: false,
    };
    let fitting = entries
        .iter()
        .filter_map(|entry| Some((entry, covered(entry.prefix(), reference)?)));
    // The longest wins; of equals the one that was read last.
    let Some((entry, covered)) = fitting.max_by_key(|(_, covered)| *covered) else {
        if purpose == Use::Pull && reference.registry() == "docker.io" {
            for mirror in &docker.mirrors {
                let insecure = mirror.starts_with("http://");
                let location = mirror.split_once("://").map_or(&**mirror, |(_, rest)| rest);
                let location = location.trim_end_matches('/');
                places.push(moved(
                    reference,
                    "docker.io".len(),
                    location,
                    insecure,
                    true,
                )?);
            }
        }
        places.push(own);
        return Ok(places);
    };
    if entry.blocked {
        return Err(Error::Blocked {
            prefix: entry.prefix().to_owned(),
        });
    }
    if purpose == Use::Pull {
        for mirror in &entry.mirror {
            let by_digest = reference.digest().is_some();
            let wanted = match mirror.pull.as_str() {
                "digest-only" => by_digest,
                "tag-only" => !by_digest,
                _ => by_digest || !entry.mirror_by_digest_only,
            };
            if wanted {
                let Mirror {
                    location, insecure, ..
                } = mirror;
                places.push(moved(reference, covered, location, *insecure, true)?);
            }
        }
    }
    places.push(match entry.location.as_str() {
        "" => Place {
            insecure: own.insecure || entry.insecure,
            ..own
        },
        location => moved(reference, covered, location, entry.insecure, false)?,
    });
    Ok(places)
}

impl Entry {
    fn prefix(&self) -> &str {
        match self.prefix.as_str() {
            "" => &self.location,
            prefix => prefix,
        }
    }
}

impl Docker {
    /// Whether the list has the host, with or without its port, or a network that its address is in.
    fn is_insecure(&self, registry: &str) -> bool {
        let host = registry
            .rsplit_once(':')
            .filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()))
            .map_or(registry, |(host, _)| host);
        self.insecure
            .iter()
            .any(|entry| match entry.split_once('/') {
                Some((network, length)) => in_network(host, network, length).unwrap_or(false),
                None => entry == registry || entry == host,
            })
    }
}

fn in_network(host: &str, network: &str, length: &str) -> Option<bool> {
    let host: IpAddr = host.trim_matches(['[', ']']).parse().ok()?;
    let network: IpAddr = network.parse().ok()?;
    let length: u32 = length.parse().ok()?;
    let same = match (host, network) {
        (IpAddr::V4(host), IpAddr::V4(network)) => {
            let differing = u32::from(host) ^ u32::from(network);
            length == 0 || differing.checked_shr(32_u32.checked_sub(length)?) == Some(0)
        }
        (IpAddr::V6(host), IpAddr::V6(network)) => {
            let differing = u128::from(host) ^ u128::from(network);
            length == 0 || differing.checked_shr(128_u32.checked_sub(length)?) == Some(0)
        }
        _ => false,
    };
    Some(same)
}

/// How many bytes of the reference's name a prefix covers; `None` when it does not fit.
fn covered(prefix: &str, reference: &Reference) -> Option<usize> {
    let name = reference.name();
    if let Some(domain) = prefix.strip_prefix("*.") {
        let host = reference.registry();
        let fits = host
            .strip_suffix(domain)
            .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'));
        return fits.then_some(host.len());
    }
    let rest = name.strip_prefix(prefix)?;
    let whole = reference.to_string();
    let ends = rest.is_empty() || rest.starts_with(['/', ':']);
    if !prefix.is_empty() && ends {
        return Some(prefix.len());
    }
    (whole == prefix).then_some(prefix.len())
}

/// The reference with `location` in place of the first `covered` bytes of its name.
fn moved(
    reference: &Reference,
    covered: usize,
    location: &str,
    insecure: bool,
    mirror: bool,
) -> Result<Place, Error> {
    let whole = reference.to_string();
    let text = format!("{location}{}", &whole[covered..]);
    let wrong = || Error::Location {
        reference: reference.familiar(),
        location: location.to_owned(),
    };
    let reference: Reference = text.parse().map_err(|_| wrong())?;
    // `location = "team/x"` is no place in Docker Hub.
    let host = location.split('/').next().unwrap_or_default();
    if !reference.registry().eq_ignore_ascii_case(host) && !host.ends_with("docker.io") {
        return Err(wrong());
    }
    Ok(Place {
        reference,
        insecure,
        mirror,
    })
}

/// The files to read, in this order.
fn files() -> Result<Vec<PathBuf>, Error> {
    let variable = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(file) = variable(VARIABLE) {
        return Ok(vec![file]);
    }
    let own = variable("XDG_CONFIG_HOME")
        .or_else(|| Some(variable("HOME")?.join(".config")))
        .map(|config| config.join("containers"));
    let system = PathBuf::from(SYSTEM);
    let main = |directory: &PathBuf| directory.join("registries.conf");
    let mut files = match &own {
        Some(own) if main(own).is_file() => vec![main(own)],
        _ => vec![main(&system)],
    };
    for directory in [Some(system), own].into_iter().flatten() {
        files.extend(parts(&directory.join("registries.conf.d"))?);
    }
    Ok(files)
}

/// The `*.conf` files of a directory, in the order of their names.
fn parts(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::Read {
        path: directory.to_owned(),
        source,
    };
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.retain(|path| path.extension().is_some_and(|end| end == "conf"));
    paths.sort();
    Ok(paths)
}

fn read(path: &Path) -> Result<Vec<Entry>, Error> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?,
    };
    let file: File = toml::from_str(&text).map_err(|error| Error::Malformed {
        path: path.to_owned(),
        source: error.into(),
    })?;
    Ok(file.registry)
}

fn read_docker(path: &Path) -> Result<Docker, Error> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Docker::default()),
        other => other.map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?,
    };
    serde_json::from_slice(&text).map_err(|error| Error::Malformed {
        path: path.to_owned(),
        source: error.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
        unqualified-search-registries = ["docker.io"]
        [[registry]]
        prefix = "docker.io"
        location = "docker.io"
        [[registry.mirror]]
        location = "localhost:5000"
        insecure = true
        [[registry.mirror]]
        location = "mirror.example/hub"
        pull-from-mirror = "digest-only"
        [[registry]]
        location = "quay.io/team"
        insecure = true
        [[registry]]
        prefix = "old.example/a"
        location = "new.example/b/c"
        [[registry]]
        prefix = "*.bad.example"
        blocked = true
    "#;

    fn there(text: &str, purpose: Use) -> Result<Vec<(String, bool, bool)>, Error> {
        let file: File = toml::from_str(FILE).unwrap();
        let docker = Docker {
            mirrors: Vec::new(),
            insecure: vec!["plain.example".to_owned(), "10.0.0.0/8".to_owned()],
        };
        let places = choose(&text.parse().unwrap(), purpose, &file.registry, &docker)?;
        let plain = |place: Place| (place.reference.to_string(), place.insecure, place.mirror);
        Ok(places.into_iter().map(plain).collect())
    }

    #[test]
    fn the_longest_prefix_decides() {
        let own = |text: &str, insecure| (text.to_owned(), insecure, false);
        let mirror = |text: &str, insecure| (text.to_owned(), insecure, true);
        let cases = [
            (
                "ubuntu:20.04",
                vec![
                    mirror("localhost:5000/library/ubuntu:20.04", true),
                    own("docker.io/library/ubuntu:20.04", false),
                ],
            ),
            ("quay.io/team/x", vec![own("quay.io/team/x:latest", true)]),
            (
                "quay.io/teams/x",
                vec![own("quay.io/teams/x:latest", false)],
            ),
            ("old.example/a/x:1", vec![own("new.example/b/c/x:1", false)]),
            ("old.example/a:1", vec![own("new.example/b/c:1", false)]),
            ("old.example/ab:1", vec![own("old.example/ab:1", false)]),
            (
                "plain.example:80/x:1",
                vec![own("plain.example:80/x:1", true)],
            ),
            ("10.1.2.3:5000/x:1", vec![own("10.1.2.3:5000/x:1", true)]),
            ("11.1.2.3:5000/x:1", vec![own("11.1.2.3:5000/x:1", false)]),
        ];
        for (text, expected) in cases {
            assert_eq!(there(text, Use::Pull).unwrap(), expected, "{text}");
        }
        let pinned = format!("ubuntu@sha256:{}", "0".repeat(64));
        assert_eq!(there(&pinned, Use::Pull).unwrap().len(), 3);
        assert_eq!(there("ubuntu", Use::Push).unwrap().len(), 1);
        let blocked = there("a.bad.example/x", Use::Pull);
        assert!(matches!(blocked, Err(Error::Blocked { .. })));
        assert!(there("bad.example/x", Use::Pull).is_ok());
    }

    #[test]
    fn dockers_mirrors_are_of_docker_hub() {
        let docker: Docker = serde_json::from_str(
            r#"{"registry-mirrors": ["http://localhost:5000/"], "log-driver": "x"}"#,
        )
        .unwrap();
        let reference = "ubuntu:20.04".parse().unwrap();
        let places = choose(&reference, Use::Pull, &[], &docker).unwrap();
        assert_eq!(
            places[0].reference.to_string(),
            "localhost:5000/library/ubuntu:20.04"
        );
        assert!(places[0].insecure && places[0].mirror && !places[1].mirror);
        let other = "quay.io/x".parse().unwrap();
        assert_eq!(choose(&other, Use::Pull, &[], &docker).unwrap().len(), 1);
    }
}
