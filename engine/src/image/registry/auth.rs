//! Credentials: from the command line, or from the files that `docker login` and `podman login` write.
//!
//! The files say for which host (podman: for which part of a host) credentials are; decoding them and talking to
//! credential helpers is `docker_credential`'s work.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use docker_credential::{CredentialRetrievalError, DockerCredential, get_credential_from_reader};
use oci_client::secrets::RegistryAuth;
use serde_json::{Map, Value, json};

use super::Access;
use crate::image::Reference;

/// What docker calls Docker Hub in its files.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// Credentials can't be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file can't be read.
    #[error("cannot read credentials in {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file is no JSON.
    #[error("credentials file {path} is damaged")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where.
        source: serde_json::Error,
    },
    /// An entry can't be decoded, or its helper fails.
    #[error("cannot use the credentials for {server} in {path}")]
    Entry {
        /// The registry's name in the file.
        server: String,
        /// The file.
        path: PathBuf,
        /// Why.
        source: CredentialRetrievalError,
    },
    /// An entry holds a kind of credential that can't be used.
    #[error(
        "the credentials for {server} in {path} are an identity token, which is not supported; log in with a password"
    )]
    IdentityToken {
        /// The registry's name in the file.
        server: String,
        /// The file.
        path: PathBuf,
    },
}

/// The credentials for an image's registry; anonymous when there are none.
pub(super) fn credentials(reference: &Reference, access: &Access) -> Result<RegistryAuth, Error> {
    if let Some((user, password)) = &access.credentials {
        return Ok(RegistryAuth::Basic(user.clone(), password.clone()));
    }
    let files = match &access.auth_file {
        Some(file) => vec![file.clone()],
        None => usual_files(),
    };
    for path in files {
        let text = match fs::read(&path) {
            Ok(text) => text,
            // Nobody has logged in there. A file that was asked for by name must exist, though.
            Err(error) if error.kind() == ErrorKind::NotFound && access.auth_file.is_none() => {
                continue;
            }
            Err(source) => return Err(Error::Read { path, source }),
        };
        if let Some(auth) = lookup(&text, &path, reference)? {
            return Ok(auth);
        }
    }
    Ok(RegistryAuth::Anonymous)
}

/// The files that credentials are looked for in; the first is the one they are written to.
pub(super) fn usual_files() -> Vec<PathBuf> {
    let variable = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(file) = variable("REGISTRY_AUTH_FILE") {
        return vec![file];
    }
    let home = variable("HOME");
    let docker = variable("DOCKER_CONFIG").or_else(|| Some(home.as_ref()?.join(".docker")));
    let runtime = variable("XDG_RUNTIME_DIR").unwrap_or_else(|| {
        PathBuf::from(format!(
            "/run/containers/{}",
            rustix::process::getuid().as_raw()
        ))
    });
    let config = variable("XDG_CONFIG_HOME").or_else(|| Some(home.as_ref()?.join(".config")));
    let mut files: Vec<PathBuf> = docker
        .into_iter()
        .map(|directory| directory.join("config.json"))
        .collect();
    files.push(match variable("XDG_RUNTIME_DIR") {
        Some(_) => runtime.join("containers/auth.json"),
        None => runtime.join("auth.json"),
    });
    files.extend(config.map(|directory| directory.join("containers/auth.json")));
    files
}

/// What one file has for the image, if anything.
fn lookup(text: &[u8], path: &Path, reference: &Reference) -> Result<Option<RegistryAuth>, Error> {
    let json = |source| Error::Json {
        path: path.to_owned(),
        source,
    };
    let file: Map<String, Value> = serde_json::from_slice(text).map_err(json)?;
    let Some((server, entry)) = choose(&file, reference) else {
        return Ok(None);
    };
    // A file of just the entry we have chosen: the crate's own rules for names are looser.
    let entry = serde_json::to_vec(&entry).map_err(json)?;
    match get_credential_from_reader(&*entry, &server) {
        Ok(DockerCredential::UsernamePassword(user, password)) => {
            Ok(Some(RegistryAuth::Basic(user, password)))
        }
        Ok(DockerCredential::IdentityToken(_)) => Err(Error::IdentityToken {
            server,
            path: path.to_owned(),
        }),
        Err(CredentialRetrievalError::NoCredentialConfigured) => Ok(None),
        Err(error) if is_unknown_to_helper(&error) => Ok(None),
        Err(source) => Err(Error::Entry {
            server,
            path: path.to_owned(),
            source,
        }),
    }
}

/// Helpers say so in one fixed sentence when they have nothing (docker-credential-helpers).
fn is_unknown_to_helper(error: &CredentialRetrievalError) -> bool {
    match error {
        CredentialRetrievalError::HelperFailure { stdout, stderr, .. } => [stdout, stderr]
            .iter()
            .any(|text| text.contains("credentials not found")),
        _ => false,
    }
}

/// The name a file has the image's registry under, and a file of nothing but what it says about that name.
///
/// A helper for the very host goes first, then entries from the most to the least specific, then the helper for all.
fn choose(file: &Map<String, Value>, reference: &Reference) -> Option<(String, Value)> {
    let registry = reference.registry();
    let server = server_name(registry);
    let object = |name: &str| file.get(name).and_then(Value::as_object);

    let helper = object("credHelpers").and_then(|helpers| {
        let names = [server, registry, "index.docker.io"];
        let fitting = if registry == "docker.io" {
            &names[..]
        } else {
            &names[..2]
        };
        fitting.iter().find_map(|name| helpers.get(*name))
    });
    if let Some(helper) = helper {
        return Some((server.to_owned(), json!({"credHelpers": {server: helper}})));
    }
    if let Some(entry) = object("auths").and_then(|auths| entry_for(auths, reference))
        && entry.as_object().is_some_and(|entry| !entry.is_empty())
    {
        return Some((server.to_owned(), json!({"auths": {server: entry}})));
    }
    let store = file
        .get("credsStore")
        .and_then(Value::as_str)
        .filter(|store| !store.is_empty())?;
    Some((server.to_owned(), json!({"auths": {}, "credsStore": store})))
}

/// What docker calls a registry in its files.
pub(super) fn server_name(registry: &str) -> &str {
    match registry {
        "docker.io" => DOCKER_HUB,
        other => other,
    }
}

fn entry_for<'f>(auths: &'f Map<String, Value>, reference: &Reference) -> Option<&'f Value> {
    let mut name = reference.name();
    loop {
        // podman's names: the repository, or anything above it down to the host.
        if let Some(entry) = auths.get(&name) {
            return Some(entry);
        }
        match name.rfind('/') {
            Some(end) => name.truncate(end),
            None => break,
        }
    }
    // docker's names: the host, perhaps as the URL of an API that is long gone.
    let registry = reference.registry();
    auths.iter().find_map(|(name, entry)| {
        let name = name
            .strip_prefix("https://")
            .or_else(|| name.strip_prefix("http://"))?;
        let host = name.split('/').next()?;
        let path = &name[host.len()..];
        let same = host == registry || (registry == "docker.io" && host == "index.docker.io");
        (same && matches!(path.trim_end_matches('/'), "" | "/v1" | "/v2")).then_some(entry)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"{"auths": {
        "https://index.docker.io/v1/": {"auth": "aHViOjE="},
        "localhost:5000": {"auth": "bG9jYWw6Mg=="},
        "https://ghcr.io": {"auth": "Z2g6Mw=="},
        "quay.io/team/app": {"auth": "YXBwOjQ="},
        "quay.io/team": {"auth": "dGVhbTo1"},
        "quay.io": {"username": "quay", "password": "6:x"},
        "stored.example": {}
    }}"#;

    fn user(file: &str, reference: &str) -> Option<(String, String)> {
        let reference = reference.parse().unwrap();
        match lookup(file.as_bytes(), Path::new("config.json"), &reference).unwrap() {
            Some(RegistryAuth::Basic(user, password)) => Some((user, password)),
            None => None,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_most_specific_entry_of_the_very_host_is_taken() {
        let cases = [
            ("debian", Some(("hub", "1"))),
            ("localhost:5000/x", Some(("local", "2"))),
            ("localhost:5001/x", None),
            ("localhost/x", None),
            ("ghcr.io/a/b", Some(("gh", "3"))),
            ("quay.io/team/app:1", Some(("app", "4"))),
            ("quay.io/team/app2", Some(("team", "5"))),
            ("quay.io/teams/app", Some(("quay", "6:x"))),
            ("evil.quay.io/team/app", None),
            ("stored.example/x", None),
        ];
        for (reference, expected) in cases {
            let expected = expected.map(|(user, password)| (user.to_owned(), password.to_owned()));
            assert_eq!(user(FILE, reference), expected, "{reference}");
        }
    }

    #[test]
    fn damage_is_an_error_and_not_anonymity() {
        let reference: Reference = "localhost:5000/x".parse().unwrap();
        let path = Path::new("config.json");
        assert!(matches!(
            lookup(b"{", path, &reference),
            Err(Error::Json { .. })
        ));
        let file = br#"{"auths": {"localhost:5000": {"auth": "%%"}}}"#;
        assert!(matches!(
            lookup(file, path, &reference),
            Err(Error::Entry { .. })
        ));
        let file = br#"{"credHelpers": {"localhost:5000": "there-is-no-such-helper"}}"#;
        assert!(matches!(
            lookup(file, path, &reference),
            Err(Error::Entry { .. })
        ));
    }
}
