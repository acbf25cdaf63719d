//! Image references: `debian`, `localhost:5000/debian:nginx`, `ghcr.io/a/b@sha256:…`.
//!
//! Parsed and completed as docker does: no registry means `docker.io`, one word there means `library/WORD`, neither
//! tag nor digest means the tag `latest`. Inside the engine a reference is always complete; the short form exists for
//! people.

use std::fmt;
use std::str::FromStr;

use bundle_tools::Digest;

/// The registry of a name that mentions none.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Where that registry keeps the images whose names have no user in front.
const OFFICIAL: &str = "library/";
/// The tag of a name with neither tag nor digest.
const DEFAULT_TAG: &str = "latest";
/// The longest name, registry included, in bytes; docker's limit.
const LONGEST_NAME: usize = 255;

/// Names an image in a registry, completely.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// A text is no image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid reference format: {text:?}: {reason}")]
pub struct ParseError {
    text: String,
    reason: &'static str,
}

impl Reference {
    /// The registry's host and port, `docker.io` for Docker Hub.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path inside the registry.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `None` only when there is a digest.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, when the reference is pinned to one.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Registry and repository without tag and digest.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The name as people type it: without what would be added anyway.
    #[must_use]
    pub fn familiar_name(&self) -> String {
        if self.registry != DEFAULT_REGISTRY {
            return self.name();
        }
        match self.repository.strip_prefix(OFFICIAL) {
            Some(word) if !word.contains('/') => word.to_owned(),
            _ => self.repository.clone(),
        }
    }

    /// The whole reference as people type it; the tag is always there.
    #[must_use]
    pub fn familiar(&self) -> String {
        self.familiar_name() + &self.suffix()
    }

    /// The same repository at a digest.
    #[must_use]
    pub fn at(&self, digest: Digest) -> Reference {
        Reference {
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }

    fn suffix(&self) -> String {
        let mut suffix = String::new();
        if let Some(tag) = &self.tag {
            suffix = format!(":{tag}");
        }
        if let Some(digest) = &self.digest {
            suffix += &format!("@{digest}");
        }
        suffix
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.registry, self.repository, self.suffix())
    }
}

impl FromStr for Reference {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Reference, ParseError> {
        parse(text).map_err(|reason| ParseError {
            text: text.chars().take(300).collect(),
            reason,
        })
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => {
            let digest = digest.parse().map_err(|_| "the digest is malformed")?;
            (rest, Some(digest))
        }
        None => (text, None),
    };
    let (name, tag) = split_tag(rest)?;
    let (registry, repository) = split_registry(name)?;
    check_repository(&repository)?;
    if registry.len() + 1 + repository.len() > LONGEST_NAME {
        return Err("the name is too long");
    }
    let tag = match (tag, &digest) {
        (None, None) => Some(DEFAULT_TAG.to_owned()),
        (tag, _) => tag.map(str::to_owned),
    };
    Ok(Reference {
        registry,
        repository,
        tag,
        digest,
    })
}

/// Splits the tag off: what follows the last colon, unless that colon belongs to the registry's port.
fn split_tag(text: &str) -> Result<(&str, Option<&str>), &'static str> {
    let Some((name, tag)) = text.rsplit_once(':') else {
        return Ok((text, None));
    };
    if tag.contains('/') || tag.ends_with(']') {
        return Ok((text, None));
    }
    let first = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    let other = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    if tag.len() > 128 || !tag.as_bytes().first().is_some_and(first) || !tag.bytes().all(other) {
        return Err("the tag is malformed");
    }
    Ok((name, Some(tag)))
}

/// Tells whether the first path component is a host, and completes what is missing.
fn split_registry(name: &str) -> Result<(String, String), &'static str> {
    let host = name.split_once('/').filter(|(host, _)| {
        host.contains(['.', ':']) || *host == "localhost" || host.chars().any(char::is_uppercase)
    });
    let (registry, repository) = match host {
        Some((host, rest)) => {
            check_host(host)?;
            (host.to_ascii_lowercase(), rest)
        }
        None => (DEFAULT_REGISTRY.to_owned(), name),
    };
    let registry = match registry.as_str() {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY.to_owned(),
        _ => registry,
    };
    let repository = if registry == DEFAULT_REGISTRY && !repository.contains('/') {
        format!("{OFFICIAL}{repository}")
    } else {
        repository.to_owned()
    };
    Ok((registry, repository))
}

fn check_host(host: &str) -> Result<(), &'static str> {
    const REASON: &str = "the registry's host is malformed";
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or(REASON)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| REASON)?;
            let port = match port {
                "" => None,
                _ => Some(port.strip_prefix(':').ok_or(REASON)?),
            };
            (None, port)
        }
        None => match host.split_once(':') {
            Some((name, port)) => (Some(name), Some(port)),
            None => (Some(host), None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let digits =
        |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    if name.is_none_or(|name| name.split('.').all(label)) && port.is_none_or(digits) {
        Ok(())
    } else {
        Err(REASON)
    }
}

fn check_repository(repository: &str) -> Result<(), &'static str> {
    if repository.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err("repository name must be lowercase");
    }
    if repository.is_empty() || !repository.split('/').all(is_component) {
        return Err("the repository name is malformed");
    }
    Ok(())
}

/// Words of `[a-z0-9]`, joined by one dot, one or two underscores, or any number of dashes.
fn is_component(component: &str) -> bool {
    let is_word = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    if !bytes.first().is_some_and(is_word) || !bytes.last().is_some_and(is_word) {
        return false;
    }
    bytes.split(is_word).all(|joint| {
        matches!(joint, b"" | b"." | b"_" | b"__") || joint.iter().all(|byte| *byte == b'-')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_docker_does() {
        let hex = "a".repeat(64);
        let cases = [
            ("debian", "docker.io/library/debian:latest", "debian:latest"),
            ("base:1.0", "docker.io/library/base:1.0", "base:1.0"),
            ("user/app", "docker.io/user/app:latest", "user/app:latest"),
            (
                "docker.io/debian",
                "docker.io/library/debian:latest",
                "debian:latest",
            ),
            (
                "index.docker.io/library/debian",
                "docker.io/library/debian:latest",
                "debian:latest",
            ),
            ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
            (
                "localhost:5000/debian:nginx",
                "localhost:5000/debian:nginx",
                "localhost:5000/debian:nginx",
            ),
            (
                "[::1]:5000/a/b",
                "[::1]:5000/a/b:latest",
                "[::1]:5000/a/b:latest",
            ),
            (
                "127.0.0.1:5000/a",
                "127.0.0.1:5000/a:latest",
                "127.0.0.1:5000/a:latest",
            ),
            (
                "arm64v8/ubuntu:20.04",
                "docker.io/arm64v8/ubuntu:20.04",
                "arm64v8/ubuntu:20.04",
            ),
            (
                "ghcr.io/a-b/c__d.e:T_1",
                "ghcr.io/a-b/c__d.e:T_1",
                "ghcr.io/a-b/c__d.e:T_1",
            ),
        ];
        for (text, full, familiar) in cases {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), full, "{text}");
            assert_eq!(reference.familiar(), familiar, "{text}");
            assert_eq!(familiar.parse::<Reference>().unwrap(), reference, "{text}");
        }
        let pinned: Reference = format!("debian@sha256:{hex}").parse().unwrap();
        assert_eq!(pinned.tag(), None);
        assert_eq!(
            pinned.to_string(),
            format!("docker.io/library/debian@sha256:{hex}")
        );
    }

    #[test]
    fn malformed_names_are_refused() {
        let long = "a".repeat(300);
        let cases = [
            "",
            ":",
            "a:",
            "a:b:c",
            "Debian",
            "a//b",
            "/a",
            "a/",
            "a b",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "../etc",
            "a@sha256:12",
            "a:.x",
            "host:99999/a",
            "host:x1/a",
            "[::g]/a",
            "http://host/a",
            "a\n",
            &long,
        ];
        for text in cases {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }
}
