//! `login` and `logout`: credentials tried at a registry, and kept where docker keeps them.
//!
//! They go into docker's `config.json`, or to the credential helper that it names. The file is replaced as a whole,
//! readable by its owner alone; what else is in it stays as it is.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use oci_client::secrets::RegistryAuth;
use reqwest::header::WWW_AUTHENTICATE;
use reqwest::{Response, StatusCode, Url};
use serde_json::{Map, Value, json};

use super::client::read_capped;
use super::endpoint::Endpoint;
use super::{Access, Fault, Use, auth, endpoints};
use crate::image::Reference;
use crate::store::{self, Durability, write_atomic};

/// Who asks a token server.
const CLIENT: &str = "qengine";

/// Why nobody is logged in, or out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name is not a registry's.
    #[error("invalid registry {0:?}: expected HOST[:PORT]")]
    Name(String),
    /// The registry does not take the credentials.
    #[error("login to {registry} failed: {reason}")]
    Refused {
        /// The registry.
        registry: String,
        /// What it said.
        reason: String,
    },
    /// The registry can't be asked.
    #[error("cannot log in to {registry}")]
    Ask {
        /// The registry.
        registry: String,
        /// Why.
        source: Fault,
    },
    /// What the machine says about the registry can't be used.
    #[error(transparent)]
    Access(#[from] super::Error),
    /// No runtime for the network part.
    #[error("cannot start the network threads")]
    Runtime(#[source] std::io::Error),
    /// There is no place to keep credentials in.
    #[error("neither HOME nor DOCKER_CONFIG says where credentials are to be kept; use --authfile")]
    Nowhere,
    /// The helper can't be started, or fails.
    #[error("credential helper {helper} failed to {action} the credentials: {reason}")]
    Helper {
        /// The program.
        helper: String,
        /// `store` or `erase`.
        action: &'static str,
        /// What it said.
        reason: String,
    },
    /// The file can't be read or written.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The file can't be read.
    #[error(transparent)]
    Credentials(#[from] auth::Error),
}

/// Tries the credentials of `access` at a registry, and keeps them when it takes them.
///
/// # Errors
/// See [`Error`]; nothing is kept then.
pub fn login(registry: &str, access: &Access) -> Result<(), Error> {
    let registry = host(registry)?;
    let Some((user, password)) = &access.credentials else {
        let reason = "no user name and password given".to_owned();
        return Err(Error::Refused { registry, reason });
    };
    check(&registry, access)?;
    let file = KeyFile::open(access)?;
    file.keep(&registry, user, password)
}

/// Forgets the credentials for a registry. Says whether there were any.
///
/// # Errors
/// When the file can't be read or written, or the helper fails.
pub fn logout(registry: &str, access: &Access) -> Result<bool, Error> {
    let registry = host(registry)?;
    KeyFile::open(access)?.forget(&registry)
}

/// Forgets all credentials; returns the registries they were for.
///
/// # Errors
/// As [`logout`].
pub fn logout_all(access: &Access) -> Result<Vec<String>, Error> {
    let file = KeyFile::open(access)?;
    let servers: Vec<String> = match file.content.get("auths") {
        Some(Value::Object(auths)) => auths.keys().cloned().collect(),
        _ => Vec::new(),
    };
    for server in &servers {
        KeyFile::open(access)?.forget(server)?;
    }
    Ok(servers)
}

/// The user name that is known for a registry.
///
/// # Errors
/// When the files of credentials can't be read.
pub fn known_user(registry: &str, access: &Access) -> Result<Option<String>, Error> {
    let reference = reference(&host(registry)?)?;
    Ok(match auth::credentials(&reference, access)? {
        RegistryAuth::Basic(user, _) => Some(user),
        _ => None,
    })
}

/// The registry's host out of whatever people type: docker's URL of Docker Hub, a scheme, a slash at the end.
fn host(text: &str) -> Result<String, Error> {
    let bare = text.split_once("://").map_or(text, |(_, rest)| rest);
    let bare = bare.split('/').next().unwrap_or_default();
    let wrong = || Error::Name(text.to_owned());
    match bare {
        "" | "docker.io" | "index.docker.io" | "registry-1.docker.io" => Ok("docker.io".to_owned()),
        host => Ok(reference(host).map_err(|_| wrong())?.registry().to_owned()),
    }
}

fn reference(registry: &str) -> Result<Reference, Error> {
    let wrong = || Error::Name(registry.to_owned());
    // A host without a dot needs no port here: it can be nothing else.
    let parse = |text: String| text.parse::<Reference>().ok();
    parse(format!("{registry}/login"))
        .filter(|reference| reference.registry().eq_ignore_ascii_case(registry))
        .ok_or_else(wrong)
}

fn check(registry: &str, access: &Access) -> Result<(), Error> {
    let reference = reference(registry)?;
    let endpoints = endpoints(&reference, access, Use::Push)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::Runtime)?;
    let mut last = None;
    for (number, endpoint) in endpoints.iter().enumerate() {
        match runtime.block_on(ask(endpoint)) {
            Ok(()) => return Ok(()),
            Err(Fault::Denied(reason)) => {
                let registry = registry.to_owned();
                return Err(Error::Refused { registry, reason });
            }
            Err(fault) => {
                let more = number + 1 < endpoints.len() && fault.is_scheme();
                last.get_or_insert(fault);
                if !more {
                    break;
                }
            }
        }
    }
    let nothing = || Fault::Protocol("there is no way to talk to it".to_owned());
    Err(Error::Ask {
        registry: registry.to_owned(),
        source: last.unwrap_or_else(nothing),
    })
}

/// Asks the registry's front door, and the token server it sends us to, with our credentials.
async fn ask(endpoint: &Endpoint) -> Result<(), Fault> {
    let (_, http) = endpoint.clients()?;
    let url = format!("{}/v2/", endpoint.base());
    let RegistryAuth::Basic(user, password) = &endpoint.auth else {
        return Err(Fault::Denied("no user name and password given".to_owned()));
    };
    let response = http.get(&url).send().await?;
    if response.status() != StatusCode::UNAUTHORIZED {
        return verdict(response).await;
    }
    let challenge = response.headers().get(WWW_AUTHENTICATE);
    let challenge = challenge.and_then(|value| value.to_str().ok());
    let Some((realm, service)) = challenge.and_then(bearer) else {
        let request = http.get(&url).basic_auth(user, Some(password));
        return verdict(request.send().await?).await;
    };
    let malformed = |_| Fault::Protocol(format!("the registry's token server is no URL: {realm}"));
    let mut url = Url::parse(&realm).map_err(malformed)?;
    if let Some(service) = service {
        url.query_pairs_mut().append_pair("service", &service);
    }
    url.query_pairs_mut()
        .append_pair("account", user)
        .append_pair("client_id", CLIENT);
    let request = http.get(url).basic_auth(user, Some(password));
    verdict(request.send().await?).await
}

async fn verdict(response: Response) -> Result<(), Fault> {
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let body = read_capped(response).await.unwrap_or_default();
    match Fault::from_status(status.as_u16(), &body) {
        Fault::NotFound => Err(Fault::Protocol("there is no registry".to_owned())),
        fault => Err(fault),
    }
}

/// Realm and service of a bearer challenge (RFC 6750); `None` of any other.
fn bearer(challenge: &str) -> Option<(String, Option<String>)> {
    let (scheme, rest) = challenge.trim().split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let mut realm = None;
    let mut service = None;
    let mut rest = rest.trim_start();
    while let Some((name, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(',').unwrap_or((after, "")),
        };
        match name.trim().to_ascii_lowercase().as_str() {
            "realm" => realm = Some(value.to_owned()),
            "service" => service = Some(value.to_owned()),
            _ => {}
        }
        rest = after.trim_start_matches([',', ' ']);
    }
    Some((realm?, service))
}

/// Docker's file of credentials.
struct KeyFile {
    path: PathBuf,
    content: Map<String, Value>,
}

impl KeyFile {
    fn open(access: &Access) -> Result<KeyFile, Error> {
        let path = match &access.auth_file {
            Some(path) => path.clone(),
            None => auth::usual_files()
                .into_iter()
                .next()
                .ok_or(Error::Nowhere)?,
        };
        // It may be a link into somebody's collection of such files.
        let path = fs::canonicalize(&path).unwrap_or(path);
        let content = match fs::read(&path) {
            Ok(text) if text.trim_ascii().is_empty() => Map::new(),
            Ok(text) => serde_json::from_slice(&text).map_err(|source| auth::Error::Json {
                path: path.clone(),
                source,
            })?,
            Err(error) if error.kind() == ErrorKind::NotFound => Map::new(),
            Err(source) => return Err(auth::Error::Read { path, source }.into()),
        };
        Ok(KeyFile { path, content })
    }

    fn keep(mut self, registry: &str, user: &str, password: &str) -> Result<(), Error> {
        let server = auth::server_name(registry).to_owned();
        let entry = match self.helper(&server) {
            Some(helper) => {
                let secret = json!({"ServerURL": server, "Username": user, "Secret": password});
                ask_helper(&helper, "store", &secret.to_string())?;
                json!({})
            }
            None => json!({"auth": STANDARD.encode(format!("{user}:{password}"))}),
        };
        let auths = self.content.entry("auths").or_insert_with(|| json!({}));
        if !auths.is_object() {
            *auths = json!({});
        }
        auths[server] = entry;
        self.write()
    }

    fn forget(mut self, registry: &str) -> Result<bool, Error> {
        let server = auth::server_name(registry).to_owned();
        let removed = self
            .content
            .get_mut("auths")
            .and_then(Value::as_object_mut)
            .and_then(|auths| auths.remove(&server));
        if removed.is_none() {
            return Ok(false);
        }
        if let Some(helper) = self.helper(&server) {
            ask_helper(&helper, "erase", &server)?;
        }
        self.write()?;
        Ok(true)
    }

    /// The helper that keeps the credentials for a server.
    fn helper(&self, server: &str) -> Option<String> {
        let own = self.content.get("credHelpers");
        let own = own.and_then(|helpers| helpers.get(server));
        let all = self.content.get("credsStore");
        let name = own.or(all).and_then(Value::as_str);
        name.filter(|name| !name.is_empty() && !name.contains('/'))
            .map(|name| format!("docker-credential-{name}"))
    }

    fn write(&self) -> Result<(), Error> {
        if let Some(directory) = self.path.parent()
            && directory != Path::new("")
        {
            store::make_dir(directory)?;
        }
        let text =
            serde_json::to_vec_pretty(&self.content).map_err(|source| store::Error::Damaged {
                path: self.path.clone(),
                source,
            })?;
        Ok(write_atomic(&self.path, &text, Durability::Durable)?)
    }
}

/// Speaks docker's protocol for credential helpers: the action as an argument, the rest on standard input.
fn ask_helper(helper: &str, action: &'static str, input: &str) -> Result<(), Error> {
    let failed = |reason: String| Error::Helper {
        helper: helper.to_owned(),
        action,
        reason,
    };
    let mut child = Command::new(helper)
        .arg(action)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read says why by its exit code.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child
        .wait_with_output()
        .map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    Err(failed(match said.trim() {
        "" => output.status.to_string(),
        said => said.chars().take(200).collect(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_found_in_what_people_type() {
        let cases = [
            ("", Some("docker.io")),
            ("https://index.docker.io/v1/", Some("docker.io")),
            ("localhost:5000", Some("localhost:5000")),
            ("https://ghcr.io/", Some("ghcr.io")),
            ("Registry.Example", Some("registry.example")),
            ("a b", None),
            ("x:y", None),
        ];
        for (text, expected) in cases {
            assert_eq!(host(text).ok().as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn challenges_are_read() {
        let text =
            r#"Bearer realm="https://auth.example/token?a=b,c",service="reg.example",scope=x"#;
        let expected = Some((
            "https://auth.example/token?a=b,c".to_owned(),
            Some("reg.example".to_owned()),
        ));
        assert_eq!(bearer(text), expected);
        assert_eq!(bearer("Basic realm=\"x\""), None);
        assert_eq!(bearer("Bearer service=x"), None);
        assert_eq!(bearer("Bearer realm=\"x"), None);
    }
}
