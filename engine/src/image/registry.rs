//! Registries: where a reference's registry is, how to talk to it, who we are there, and the requests themselves.
//!
//! What pulls and pushes have in common. The order of the parts: [`places`] finds out where an image may be (mirrors),
//! [`endpoint`] lists the ways there (schemes, certificates), [`auth`] finds the credentials for each, [`connect`] tries them until one works, [`client`]
//! and [`upload`] make the requests, [`fault`] says what is wrong with an answer.
//!
//! Governing text: distribution-spec.

pub(super) mod auth;
mod client;
mod endpoint;
mod fault;
pub mod login;
mod places;
mod upload;

use std::path::PathBuf;
use std::time::Duration;

use oci_client::RegistryOperation;
use oci_client::secrets::RegistryAuth;

#[cfg(test)]
pub(super) use client::Part;
pub(super) use client::{Answer, Oci, Registry};
pub(super) use endpoint::Endpoint;
pub use fault::{Fault, Refusal};
pub(super) use upload::Content;

use super::Reference;

/// Attempts at one small request.
const ATTEMPTS: u32 = 4;
/// The first pause between two attempts; it doubles each time.
const PAUSE: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 200 });

/// How to get at registries.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// `Some(true)`: only https with a valid certificate. `Some(false)`: also with an invalid one, and http. `None`:
    /// http for this machine's own registries, https with a valid certificate for all others.
    pub tls_verify: Option<bool>,
    /// A directory of certificate authorities (`*.crt`) to trust as well.
    pub cert_dir: Option<PathBuf>,
    /// User name and password, before any that files hold.
    pub credentials: Option<(String, String)>,
    /// The file of credentials to use instead of the usual ones.
    pub auth_file: Option<PathBuf>,
}

/// What the machine's files say about a registry can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Credentials can't be read.
    #[error(transparent)]
    Credentials(#[from] auth::Error),
    /// Certificates can't be read.
    #[error(transparent)]
    Certificates(#[from] endpoint::Error),
    /// The configuration of registries can't be read, or forbids it.
    #[error(transparent)]
    Places(#[from] places::Error),
}

/// What a registry is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Pull,
    Push,
}

impl Use {
    fn operation(self) -> RegistryOperation {
        match self {
            Use::Pull => RegistryOperation::Pull,
            Use::Push => RegistryOperation::Push,
        }
    }
}

/// The ways to a reference's repository, in the order in which they are to be tried.
pub(super) fn endpoints(
    reference: &Reference,
    access: &Access,
    purpose: Use,
) -> Result<Vec<Endpoint>, Error> {
    let mut endpoints = Vec::new();
    for place in places::places(reference, purpose)? {
        let mut access = access.clone();
        if place.mirror || place.reference.registry() != reference.registry() {
            // They are for the registry that was named.
            access.credentials = None;
        }
        if place.insecure {
            access.tls_verify.get_or_insert(false);
        }
        let auth = auth::credentials(&place.reference, &access)?;
        endpoints.extend(endpoint::candidates(&place, &access, &auth)?);
    }
    Ok(endpoints)
}

/// Tries the ways to talk to the registry until one works, with a first request that tells.
pub(super) async fn connect<T>(
    endpoints: &[Endpoint],
    purpose: Use,
    first: impl AsyncFn(&Oci) -> Result<T, Fault>,
) -> Result<(Oci, T), Fault> {
    let mut mirrors = String::new();
    let mut rest = endpoints;
    while let Some(first_way) = rest.first() {
        let place = &first_way.place;
        let count = rest.iter().take_while(|way| way.place == *place).count();
        let (ways, others) = rest.split_at(count);
        rest = others;
        match connect_to(ways, purpose, &first).await {
            Err(fault) if first_way.mirror && !rest.is_empty() => {
                mirrors += &format!(" (and mirror {}: {fault})", place.name());
            }
            // Why there was no way round it belongs to it.
            Err(Fault::Unreachable(reason)) => return Err(Fault::Unreachable(reason + &mirrors)),
            other => return other,
        }
    }
    Err(Fault::Protocol("there is no way to talk to it".to_owned()))
}

/// Tries the ways to one place.
async fn connect_to<T>(
    endpoints: &[Endpoint],
    purpose: Use,
    first: &impl AsyncFn(&Oci) -> Result<T, Fault>,
) -> Result<(Oci, T), Fault> {
    let mut first_fault = None;
    for (number, endpoint) in endpoints.iter().enumerate() {
        let more = number + 1 < endpoints.len();
        let mut failures = 0;
        let fault = loop {
            let attempt = async {
                let registry = Oci::log_in(endpoint, purpose.operation()).await?;
                let answer = first(&registry).await?;
                Ok((registry, answer))
            };
            let fault = match attempt.await {
                Ok(connected) => return Ok(connected),
                Err(Fault::Denied(reason)) if endpoint.auth == RegistryAuth::Anonymous => {
                    let remedy =
                        "no credentials are known: use --creds, or log in with `qengine login`";
                    return Err(Fault::Denied(format!("{reason} ({remedy})")));
                }
                Err(fault) => fault,
            };
            failures += 1;
            // A registry that is down is reported at once; and the other scheme is tried before the same again.
            let final_answer = matches!(fault, Fault::Unreachable(_)) || !fault.is_passing();
            if final_answer || failures >= ATTEMPTS || (more && fault.is_scheme()) {
                break fault;
            }
            tokio::time::sleep(pause(failures)).await;
        };
        if !(more && fault.is_scheme()) {
            // What the first way ended with says more than that the second is closed as well.
            let closed = matches!(
                fault,
                Fault::Unreachable(_) | Fault::Dropped(_) | Fault::Certificate(_)
            );
            return Err(first_fault.filter(|_| closed).unwrap_or(fault));
        }
        if !matches!(fault, Fault::Server { .. }) {
            first_fault.get_or_insert(fault);
        }
    }
    Err(first_fault.unwrap_or_else(|| Fault::Protocol("there is no way to talk to it".to_owned())))
}

/// Makes a small request again while it fails for reasons that pass.
pub(super) async fn with_retries<T>(
    request: impl AsyncFn() -> Result<T, Fault>,
) -> Result<T, Fault> {
    let mut failures = 0;
    loop {
        match request().await {
            Err(fault) if fault.is_passing() && failures + 1 < ATTEMPTS => {
                failures += 1;
                tokio::time::sleep(pause(failures)).await;
            }
            other => return other,
        }
    }
}

/// How long to wait before the next attempt.
pub(super) fn pause(failures: u32) -> Duration {
    PAUSE * 2_u32.saturating_pow(failures.saturating_sub(1)).min(32)
}
