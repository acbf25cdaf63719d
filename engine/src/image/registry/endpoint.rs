//! How to talk to a registry: which scheme, which certificates, through which proxy.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference as OciReference};
use reqwest::{NoProxy, Proxy};

use super::Access;
use super::fault::Fault;
use super::places::Place;
use crate::image::Reference;

/// Where administrators put the certificate authorities of single registries: `<directory>/<host>/*.crt`.
const CERTS_D: [&str; 3] = [
    "/etc/qengine/certs.d",
    "/etc/containers/certs.d",
    "/etc/docker/certs.d",
];
/// Who we say we are.
const USER_AGENT: &str = concat!("qengine/", env!("CARGO_PKG_VERSION"));
/// How long a registry has for accepting a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a registry may be silent.
const SILENCE: Duration = Duration::from_secs(60);

/// Certificates can't be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory of certificates.
    #[error("cannot read certificates in {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A directory given on the command line has none.
    #[error("there is no certificate (*.crt) in {0}")]
    Empty(PathBuf),
}

/// One way to talk to a registry.
#[derive(Debug, Clone)]
pub(in crate::image) struct Endpoint {
    /// The repository.
    pub(super) place: Reference,
    /// Whether it is only a copy of the one that was asked for.
    pub(super) mirror: bool,
    /// Who we are there.
    pub(super) auth: RegistryAuth,
    https: bool,
    verify: bool,
    /// PEM files of certificate authorities to trust besides the system's.
    authorities: Vec<Vec<u8>>,
}

/// The ways to try, in order.
///
/// https with a valid certificate, unless the registry is on this machine or the user says that it need not be.
pub(super) fn candidates(
    place: &Place,
    access: &Access,
    auth: &RegistryAuth,
) -> Result<Vec<Endpoint>, Error> {
    let registry = place.reference.registry();
    let authorities = authorities(registry, access)?;
    let endpoint = |https, verify| Endpoint {
        place: place.reference.clone(),
        mirror: place.mirror,
        auth: auth.clone(),
        https,
        verify,
        authorities: authorities.clone(),
    };
    let (http, https, unverified) = (
        endpoint(false, true),
        endpoint(true, true),
        endpoint(true, false),
    );
    let own_machine = is_loopback(registry);
    Ok(match access.tls_verify {
        Some(true) => vec![https],
        None if !own_machine || !authorities.is_empty() => vec![https],
        // Nobody is between us and ourselves. Plain http is what a registry here mostly speaks.
        None => vec![http, unverified],
        Some(false) if own_machine => vec![http, unverified],
        Some(false) => vec![unverified, http],
    })
}

fn is_loopback(registry: &str) -> bool {
    let host = match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => registry.split(':').next().unwrap_or_default(),
    };
    host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

fn authorities(registry: &str, access: &Access) -> Result<Vec<Vec<u8>>, Error> {
    if let Some(directory) = &access.cert_dir {
        let found = read_authorities(directory)?;
        return match found.is_empty() {
            true => Err(Error::Empty(directory.clone())),
            false => Ok(found),
        };
    }
    for parent in CERTS_D {
        let directory = Path::new(parent).join(registry);
        if directory.is_dir() {
            return read_authorities(&directory);
        }
    }
    Ok(Vec::new())
}

fn read_authorities(directory: &Path) -> Result<Vec<Vec<u8>>, Error> {
    let failed = |source| Error::Read {
        path: directory.to_owned(),
        source,
    };
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.retain(|path| path.extension() == Some(OsStr::new("crt")));
    paths.sort();
    paths
        .iter()
        .map(|path| fs::read(path).map_err(failed))
        .collect()
}

impl Endpoint {
    /// `http` or `https`.
    fn scheme(&self) -> &'static str {
        match self.https {
            true => "https",
            false => "http",
        }
    }

    /// Scheme and host, as in a URL.
    pub(super) fn base(&self) -> String {
        let place = OciReference::with_tag(
            self.place.registry().to_owned(),
            self.place.repository().to_owned(),
            "latest".to_owned(),
        );
        format!("{}://{}", self.scheme(), place.resolve_registry())
    }

    /// Clients for this way: one that knows registries, one that knows HTTP.
    pub(super) fn clients(&self) -> Result<(Client, reqwest::Client), Fault> {
        // Fails when somebody else has chosen a provider already, and then that one will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let make = |only: Option<Vec<u8>>| -> Result<(Client, reqwest::Client), Fault> {
            let http = self.http(only.clone())?;
            Ok((Client::try_from(self.registry(only))?, http))
        };
        let clients = make(None);
        if clients.is_err() && !self.https {
            // A machine without any certificate authority can do without for http; https elsewhere then fails.
            return make(Some(Vec::new()));
        }
        clients.map_err(|fault| Fault::Certificate(fault.to_string()))
    }

    fn registry(&self, only: Option<Vec<u8>>) -> ClientConfig {
        let certificate = |data| Certificate {
            encoding: CertificateEncoding::Pem,
            data,
        };
        let [https_proxy, http_proxy, no_proxy] = proxies();
        ClientConfig {
            protocol: match self.https {
                true => ClientProtocol::Https,
                false => ClientProtocol::Http,
            },
            accept_invalid_certificates: !self.verify,
            tls_certs_only: only.into_iter().map(certificate).collect(),
            extra_root_certificates: self.authorities.iter().cloned().map(certificate).collect(),
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(SILENCE),
            user_agent: USER_AGENT,
            https_proxy,
            http_proxy,
            no_proxy,
            ..ClientConfig::default()
        }
    }

    fn http(&self, only: Option<Vec<u8>>) -> Result<reqwest::Client, Fault> {
        let mut builder = reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(SILENCE)
            .no_proxy()
            .tls_danger_accept_invalid_certs(!self.verify);
        if let Some(only) = only {
            builder = builder.tls_certs_only([reqwest::Certificate::from_pem(&only)?]);
        }
        for authority in &self.authorities {
            builder = builder.tls_certs_merge([reqwest::Certificate::from_pem(authority)?]);
        }
        let [https, http, none] = proxies();
        let none = none.and_then(|none| NoProxy::from_string(&none));
        if let Some(proxy) = https {
            builder = builder.proxy(Proxy::https(proxy)?.no_proxy(none.clone()));
        }
        if let Some(proxy) = http {
            builder = builder.proxy(Proxy::http(proxy)?.no_proxy(none));
        }
        Ok(builder.build()?)
    }
}

/// Proxies for https and for http by the usual variables, and the hosts that need none.
fn proxies() -> [Option<String>; 3] {
    let variable = |names: [&str; 2]| {
        let mut values = names.iter().filter_map(|name| std::env::var(name).ok());
        values.find(|value| !value.is_empty())
    };
    // This machine is never behind a proxy.
    let none = variable(["NO_PROXY", "no_proxy"]).unwrap_or_default();
    [
        variable(["HTTPS_PROXY", "https_proxy"]),
        variable(["HTTP_PROXY", "http_proxy"]),
        Some(none + ",localhost,127.0.0.0/8,::1"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_and_the_user_may_do_without_tls() {
        let ways = |registry: &str, tls_verify| -> Vec<(bool, bool)> {
            let access = Access {
                tls_verify,
                ..Access::default()
            };
            let place = Place {
                reference: format!("{registry}/x").parse().unwrap(),
                insecure: false,
                mirror: false,
            };
            let ways = candidates(&place, &access, &RegistryAuth::Anonymous).unwrap();
            ways.iter().map(|way| (way.https, way.verify)).collect()
        };
        let (http, https, unverified) = ((false, true), (true, true), (true, false));
        for registry in [
            "localhost:5000",
            "127.0.0.1",
            "127.1.2.3:80",
            "[::1]:5000",
            "localhost",
        ] {
            assert_eq!(ways(registry, None), [http, unverified], "{registry}");
            assert_eq!(ways(registry, Some(true)), [https], "{registry}");
        }
        for registry in [
            "docker.io",
            "ghcr.io:443",
            "128.0.0.1",
            "[fe80::1]:5000",
            "localhost.example.org",
        ] {
            assert_eq!(ways(registry, None), [https], "{registry}");
            assert_eq!(
                ways(registry, Some(false)),
                [unverified, http],
                "{registry}"
            );
        }
    }
}
