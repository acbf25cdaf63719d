//! What can be wrong with a registry's answer, and what it is called.

use std::error::Error as StdError;
use std::io;

use oci_client::errors::{DigestError, OciDistributionError, OciEnvelope, OciErrorCode};

use crate::image::Reference;

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

/// Why a registry could not be used at all, whatever was wanted of it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refusal {
    /// It wants (other) credentials.
    #[error("{action} access denied for {repository} at {host}: {reason}")]
    Denied {
        /// `pull` or `push`.
        action: &'static str,
        /// The repository.
        repository: String,
        /// The registry.
        host: String,
        /// What the registry, or its token server, said.
        reason: String,
    },
    /// Nobody answers.
    #[error(
        "cannot reach registry {host}: {reason}; check that it is running, and the host name and port"
    )]
    Unreachable {
        /// Host and port.
        host: String,
        /// What the network said.
        reason: String,
    },
    /// Its certificate is not trusted.
    #[error(
        "cannot trust registry {host}: {reason}; use --cert-dir for its certificate authority, or --tls-verify=false"
    )]
    Certificate {
        /// Host and port.
        host: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl Fault {
    /// The fault as what it means to somebody who wants to `action` (`pull`, `push`) the image.
    ///
    /// # Errors
    /// The fault itself, when it is about what was asked for and not about the registry.
    pub(in crate::image) fn into_refusal(
        self,
        action: &'static str,
        image: &Reference,
    ) -> Result<Refusal, Fault> {
        let host = image.registry().to_owned();
        match self {
            Fault::Denied(reason) => Ok(Refusal::Denied {
                action,
                repository: image.repository().to_owned(),
                host,
                reason,
            }),
            Fault::Unreachable(reason) => Ok(Refusal::Unreachable { host, reason }),
            Fault::Certificate(reason) => Ok(Refusal::Certificate { host, reason }),
            other => Err(other),
        }
    }

    /// Whether the same request may succeed a moment later.
    pub(in crate::image) fn is_passing(&self) -> bool {
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

    /// What an error status and the body that came with it mean.
    pub(super) fn from_status(code: u16, body: &[u8]) -> Fault {
        if code < 500
            && let Ok(envelope) = serde_json::from_slice::<OciEnvelope>(body)
        {
            return envelope_fault(&envelope);
        }
        let message = said(&String::from_utf8_lossy(body));
        match code {
            401 | 403 => Fault::Denied(message),
            404 => Fault::NotFound,
            _ => Fault::Server { code, message },
        }
    }

    /// What a failure amid a body means.
    pub(in crate::image) fn from_stream(error: &io::Error) -> Fault {
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
                Fault::Denied("unauthorized: authentication required".to_owned())
            }
            OciDistributionError::RegistryError { envelope, .. } => envelope_fault(&envelope),
            OciDistributionError::ServerError { code, message, .. } => {
                Fault::from_status(code, message.as_bytes())
            }
            OciDistributionError::DigestError(DigestError::VerificationError {
                actual, ..
            }) => Fault::WrongDigest { actual },
            OciDistributionError::IoError(error) => Fault::Dropped(root_cause(&error)),
            other => Fault::Protocol(other.to_string()),
        }
    }
}

impl From<reqwest::Error> for Fault {
    fn from(error: reqwest::Error) -> Fault {
        request_fault(&error)
    }
}

fn request_fault(error: &(dyn StdError + 'static)) -> Fault {
    let reason = root_cause(error);
    let certificate = causes(error)
        .filter_map(|error| error.downcast_ref::<rustls::Error>())
        .any(|error| matches!(error, rustls::Error::InvalidCertificate(_)));
    let connect = causes(error)
        .filter_map(|error| error.downcast_ref::<reqwest::Error>())
        .any(reqwest::Error::is_connect);
    if certificate {
        Fault::Certificate(reason)
    } else if connect {
        Fault::Unreachable(reason)
    } else {
        Fault::Dropped(reason)
    }
}

/// The error and what led to it. An `io::Error` around another error does not call that its source, but it is.
fn causes<'e>(
    error: &'e (dyn StdError + 'static),
) -> impl Iterator<Item = &'e (dyn StdError + 'static)> {
    let next = |error: &&'e (dyn StdError + 'static)| -> Option<&'e (dyn StdError + 'static)> {
        let error: &'e (dyn StdError + 'static) = *error;
        match error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(inner) => Some(inner),
            None => error.source(),
        }
    };
    std::iter::successors(Some(error), next)
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
        OciErrorCode::Unauthorized => Fault::Denied(format!("unauthorized: {message}")),
        OciErrorCode::Denied => Fault::Denied(message),
        OciErrorCode::Toomanyrequests => Fault::Server { code: 429, message },
        _ => Fault::Protocol(message),
    }
}

/// The innermost cause, which is the one that says something.
pub(super) fn root_cause(error: &(dyn StdError + 'static)) -> String {
    let innermost = causes(error).last().unwrap_or(error);
    if let Some(rustls::Error::InvalidMessage(_)) = innermost.downcast_ref::<rustls::Error>() {
        return "what answers there does not speak TLS".to_owned();
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
