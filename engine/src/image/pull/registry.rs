//! What is asked of a registry, and the answer of `oci-client`.
//!
//! Governing text: distribution-spec, "Pull".

use std::error::Error as StdError;
use std::future::Future;
use std::io;

use bundle_tools::Digest;
use bundle_tools::image::media_type;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use oci_client::client::{BlobResponse, Client};
use oci_client::errors::{DigestError, OciDistributionError, OciEnvelope, OciErrorCode};
use oci_client::secrets::RegistryAuth;
use oci_client::{Reference as OciReference, RegistryOperation};

use crate::image::Reference;

/// What manifests may be.
const MANIFEST_TYPES: [&str; 4] = [
    media_type::MANIFEST,
    media_type::DOCKER_MANIFEST,
    media_type::INDEX,
    media_type::DOCKER_INDEX,
];

/// One repository of a registry.
pub(super) trait Registry: Send + Sync {
    /// The manifest or index of a tag or digest.
    fn manifest(&self, at: &str) -> impl Future<Output = Result<Vec<u8>, Fault>> + Send;
    /// A blob from byte `offset` on.
    fn blob(
        &self,
        digest: &Digest,
        offset: u64,
    ) -> impl Future<Output = Result<Part, Fault>> + Send;
}

/// The rest of a blob, or all of it again.
pub(super) struct Part {
    /// Where in the blob the stream starts: where it was asked to, or 0.
    pub(super) offset: u64,
    /// The bytes.
    pub(super) stream: BoxStream<'static, io::Result<Bytes>>,
}

/// Why a registry did not give what was asked for.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Fault {
    /// It has no such thing.
    #[error("the registry does not have it")]
    NotFound,
    /// It wants to know who asks, or won't give it to who asks.
    #[error("{0}")]
    Denied(String),
    /// There is no connection.
    #[error("{0}")]
    Unreachable(String),
    /// The other side's certificate is not trusted.
    #[error("{0}")]
    Certificate(String),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Dropped(String),
    /// An error status.
    #[error("the registry answers {code}: {message}")]
    Server {
        /// The HTTP status.
        code: u16,
        /// What came with it, shortened.
        message: String,
    },
    /// It sent other content than it was asked for.
    #[error("wrong digest: the registry sent {actual}")]
    WrongDigest {
        /// The digest of what it sent.
        actual: String,
    },
    /// It sent less than the manifest says.
    #[error("truncated: the registry sent {done} of {size} bytes")]
    Truncated {
        /// How much.
        done: u64,
        /// Of how much.
        size: u64,
    },
    /// It sent more than the manifest says.
    #[error("the registry sent more than the {size} bytes that the manifest says")]
    Oversized {
        /// Bytes by the manifest.
        size: u64,
    },
    /// It does not keep to the protocol.
    #[error("{0}")]
    Protocol(String),
}

impl Fault {
    /// Whether the same request may succeed a moment later.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Fault::Unreachable(_) | Fault::Dropped(_) | Fault::Truncated { .. } => true,
            Fault::Server { code, .. } => matches!(code, 408 | 429 | 500..=599),
            _ => false,
        }
    }

    /// Whether the other side may speak another scheme (http, https) than was used.
    pub(super) fn is_scheme(&self) -> bool {
        matches!(
            self,
            Fault::Unreachable(_)
                | Fault::Dropped(_)
                | Fault::Certificate(_)
                | Fault::Server { code: 400, .. }
        )
    }

    /// What a failure amid a body means.
    pub(super) fn from_stream(error: &io::Error) -> Fault {
        let verification = error
            .get_ref()
            .and_then(|error| error.downcast_ref::<DigestError>());
        match verification {
            Some(DigestError::VerificationError { actual, .. }) => Fault::WrongDigest {
                actual: actual.clone(),
            },
            _ => Fault::Dropped(root_cause(error)),
        }
    }
}

impl From<OciDistributionError> for Fault {
    fn from(error: OciDistributionError) -> Fault {
        match error {
            OciDistributionError::RequestError(error) => request_fault(&error),
            OciDistributionError::ImageManifestNotFoundError(_) => Fault::NotFound,
            OciDistributionError::AuthenticationFailure(body) => Fault::Denied(said(&body)),
            OciDistributionError::UnauthorizedError { .. } => {
                Fault::Denied("authentication required".to_owned())
            }
            OciDistributionError::RegistryError { envelope, .. } => envelope_fault(&envelope),
            OciDistributionError::ServerError { code, message, .. } => match code {
                401 | 403 => Fault::Denied(said(&message)),
                404 => Fault::NotFound,
                _ => Fault::Server {
                    code,
                    message: said(&message),
                },
            },
            OciDistributionError::DigestError(DigestError::VerificationError {
                actual, ..
            }) => Fault::WrongDigest { actual },
            OciDistributionError::IoError(error) => Fault::Dropped(root_cause(&error)),
            other => Fault::Protocol(other.to_string()),
        }
    }
}

fn request_fault(error: &(dyn StdError + 'static)) -> Fault {
    let reason = root_cause(error);
    let is_certificate = |error: &(dyn StdError + 'static)| {
        matches!(
            error.downcast_ref::<rustls::Error>(),
            Some(rustls::Error::InvalidCertificate(_))
        )
    };
    let causes = || {
        std::iter::successors(Some(error), |error: &&(dyn StdError + 'static)| {
            (*error).source()
        })
    };
    // rustls' errors travel inside of an io::Error, which does not call them its source.
    let wrapped = causes()
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .filter_map(|error| error.get_ref())
        .any(|error| is_certificate(error));
    if wrapped || causes().any(is_certificate) {
        return Fault::Certificate(reason);
    }
    let connect = causes()
        .filter_map(|error| error.downcast_ref::<reqwest::Error>())
        .any(reqwest::Error::is_connect);
    if connect {
        Fault::Unreachable(reason)
    } else {
        Fault::Dropped(reason)
    }
}

fn envelope_fault(envelope: &OciEnvelope) -> Fault {
    let Some(error) = envelope.errors.first() else {
        return Fault::Protocol("the registry reports an error and does not say which".to_owned());
    };
    let message = if error.message.is_empty() {
        format!("{:?}", error.code)
    } else {
        said(&error.message)
    };
    match error.code {
        OciErrorCode::ManifestUnknown
        | OciErrorCode::NameUnknown
        | OciErrorCode::BlobUnknown
        | OciErrorCode::ManifestBlobUnknown
        | OciErrorCode::NotFound => Fault::NotFound,
        OciErrorCode::Unauthorized | OciErrorCode::Denied => Fault::Denied(message),
        OciErrorCode::Toomanyrequests => Fault::Server { code: 429, message },
        _ => Fault::Protocol(message),
    }
}

/// The innermost cause, which is the one that says something.
pub(super) fn root_cause(error: &(dyn StdError + 'static)) -> String {
    let mut innermost = error;
    loop {
        let next = match innermost
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(inner) => Some(inner as &(dyn StdError + 'static)),
            None => innermost.source(),
        };
        match next {
            Some(next) => innermost = next,
            None => break,
        }
    }
    match innermost.downcast_ref::<io::Error>().map(io::Error::kind) {
        Some(io::ErrorKind::ConnectionRefused) => "connection refused".to_owned(),
        Some(io::ErrorKind::ConnectionReset) => "connection reset".to_owned(),
        Some(io::ErrorKind::UnexpectedEof) => "connection closed".to_owned(),
        Some(io::ErrorKind::TimedOut) => "no answer in time".to_owned(),
        _ => said(&innermost.to_string()),
    }
}

/// What a stranger's server said, made fit for one line of an error message.
fn said(text: &str) -> String {
    if let Ok(envelope) = serde_json::from_str::<OciEnvelope>(text)
        && let Some(error) = envelope.errors.first()
        && !error.message.is_empty()
    {
        return said(&error.message);
    }
    let mut line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.retain(|character| !character.is_control());
    if line.is_empty() {
        return "no reason given".to_owned();
    }
    line.chars().take(200).collect()
}

/// A registry through `oci-client`.
pub(super) struct Oci {
    client: Client,
    repository: OciReference,
    auth: RegistryAuth,
}

impl std::fmt::Debug for Oci {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Oci")
            .field(&self.repository.to_string())
            .finish()
    }
}

impl Oci {
    pub(super) fn new(client: Client, reference: &Reference, auth: RegistryAuth) -> Oci {
        Oci {
            client,
            repository: at(reference.registry(), reference.repository(), "latest"),
            auth,
        }
    }

    /// Asks for whatever authentication the registry wants, so that a refusal is seen as what it is.
    pub(super) async fn log_in(&self) -> Result<(), Fault> {
        let token = self
            .client
            .auth(&self.repository, &self.auth, RegistryOperation::Pull)
            .await?;
        // It becomes a header, and must not become two.
        if token.is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(Fault::Protocol(
                "the token server's token is malformed".to_owned(),
            ));
        }
        Ok(())
    }
}

impl Registry for Oci {
    async fn manifest(&self, wanted: &str) -> Result<Vec<u8>, Fault> {
        let reference = at(
            self.repository.registry(),
            self.repository.repository(),
            wanted,
        );
        let request = self
            .client
            .pull_manifest_raw(&reference, &self.auth, &MANIFEST_TYPES);
        let (bytes, _) = request.await?;
        Ok(bytes.to_vec())
    }

    async fn blob(&self, digest: &Digest, offset: u64) -> Result<Part, Fault> {
        // No other places than the registry are given: a manifest's `urls` are not followed.
        let request =
            self.client
                .pull_blob_stream_partial(&self.repository, digest.as_str(), offset, None);
        Ok(match request.await? {
            BlobResponse::Full(body) => Part {
                offset: 0,
                stream: body.stream,
            },
            BlobResponse::Partial(body) => Part {
                offset,
                stream: body.stream,
            },
        })
    }
}

fn at(registry: &str, repository: &str, tag_or_digest: &str) -> OciReference {
    let make = if tag_or_digest.contains(':') {
        OciReference::with_digest
    } else {
        OciReference::with_tag
    };
    make(
        registry.to_owned(),
        repository.to_owned(),
        tag_or_digest.to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_servers_say_fits_on_a_line() {
        let cases = [
            ("", "no reason given"),
            ("a\r\n  b\u{1b}[31m", "a b[31m"),
            (
                r#"{"errors":[{"code":"DENIED","message":"go away"}]}"#,
                "go away",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(said(text), expected);
        }
        assert_eq!(said(&"x".repeat(1000)).len(), 200);
    }

    #[test]
    fn faults_that_pass_are_told_from_those_that_stay() {
        let server = |code| Fault::Server {
            code,
            message: String::new(),
        };
        assert!(server(503).is_passing() && server(429).is_passing() && !server(400).is_passing());
        assert!(Fault::Dropped(String::new()).is_passing());
        assert!(!Fault::NotFound.is_passing() && !Fault::Denied(String::new()).is_passing());
    }
}
