//! What is asked of a registry, and the answer of `oci-client`.
//!
//! Governing text: distribution-spec, "Pull".

use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use bundle_tools::Digest;
use bundle_tools::image::{MAX_DOCUMENT, media_type};
use bytes::Bytes;
use futures_util::stream::BoxStream;
use oci_client::client::{BlobResponse, Client};
use oci_client::secrets::RegistryAuth;
use oci_client::{Reference as OciReference, RegistryOperation};
use reqwest::header::{ACCEPT, CONTENT_TYPE, LINK};
use reqwest::{RequestBuilder, Response, StatusCode};

use super::endpoint::Endpoint;
use super::fault::Fault;

/// What manifests may be.
const MANIFEST_TYPES: [&str; 4] = [
    media_type::MANIFEST,
    media_type::DOCKER_MANIFEST,
    media_type::INDEX,
    media_type::DOCKER_INDEX,
];

/// Pages of a list of tags that are read, at most.
const MOST_PAGES: usize = 1000;

/// One repository of a registry.
pub(in crate::image) trait Registry: Send + Sync {
    /// The manifest or index of a tag or digest.
    fn manifest(&self, at: &str) -> impl Future<Output = Result<Answer, Fault>> + Send;
    /// A blob from byte `offset` on.
    fn blob(
        &self,
        digest: &Digest,
        offset: u64,
    ) -> impl Future<Output = Result<Part, Fault>> + Send;
}

/// A manifest or index.
#[derive(Debug, Clone)]
pub(in crate::image) struct Answer {
    pub(in crate::image) bytes: Vec<u8>,
    /// What the registry calls it.
    pub(in crate::image) content_type: Option<String>,
}

/// The rest of a blob, or all of it again.
pub(in crate::image) struct Part {
    /// Where in the blob the stream starts: where it was asked to, or 0.
    pub(in crate::image) offset: u64,
    /// The bytes.
    pub(in crate::image) stream: BoxStream<'static, io::Result<Bytes>>,
}

/// A repository of a registry through `oci-client`: authentication and blobs. Manifests and uploads are our own requests:
/// `oci-client` reads whatever a server sends into memory, without a limit, doesn't tell the content type, and sends
/// blobs out of memory.
pub(in crate::image) struct Oci {
    client: Client,
    pub(super) http: reqwest::Client,
    /// Scheme and host.
    base: String,
    repository: OciReference,
    auth: RegistryAuth,
    operation: RegistryOperation,
    /// What the token server gave, where there is one.
    token: Mutex<Option<String>>,
    /// The registry has asked for the password.
    wants_password: AtomicBool,
}

impl std::fmt::Debug for Oci {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Oci")
            .field(&self.repository.to_string())
            .finish()
    }
}

impl Oci {
    /// Connects, and asks for whatever authentication the registry wants, so that a refusal is seen as what it is.
    pub(super) async fn log_in(
        endpoint: &Endpoint,
        operation: RegistryOperation,
    ) -> Result<Oci, Fault> {
        let (client, http) = endpoint.clients()?;
        let repository = OciReference::with_tag(
            endpoint.place.registry().to_owned(),
            endpoint.place.repository().to_owned(),
            "latest".to_owned(),
        );
        let registry = Oci {
            client,
            http,
            base: endpoint.base(),
            repository,
            auth: endpoint.auth.clone(),
            operation,
            token: Mutex::default(),
            wants_password: AtomicBool::new(false),
        };
        registry.fetch_token().await?;
        Ok(registry)
    }

    /// The address of something in the repository.
    pub(super) fn url(&self, rest: &str) -> String {
        format!("{}/v2/{}/{rest}", self.base, self.repository.repository())
    }

    /// All tags of the repository.
    pub(in crate::image) async fn tags(&self) -> Result<Vec<String>, Fault> {
        #[derive(serde::Deserialize)]
        struct Page {
            // Go writes an empty list as null.
            tags: Option<Vec<String>>,
        }
        let mut tags = Vec::new();
        let mut url = self.url("tags/list");
        for _ in 0..MOST_PAGES {
            let response = self.send(&url, || self.http.get(&url)).await?;
            let status = response.status();
            let next = next_page(&response);
            let bytes = read_capped(response).await?;
            if !status.is_success() {
                return Err(Fault::from_status(status.as_u16(), &bytes));
            }
            let page: Page = serde_json::from_slice(&bytes)
                .map_err(|_| Fault::Protocol("the list of tags is malformed".to_owned()))?;
            tags.extend(page.tags.unwrap_or_default());
            match next {
                Some(next) => url = next,
                None => return Ok(tags),
            }
        }
        Err(Fault::Protocol("the list of tags has no end".to_owned()))
    }

    async fn fetch_token(&self) -> Result<Option<String>, Fault> {
        let token = self
            .client
            .auth(&self.repository, &self.auth, self.operation)
            .await?;
        // It becomes a header, and must not become two.
        let plain = |token: &String| token.bytes().all(|byte| byte.is_ascii_graphic());
        if !token.as_ref().is_none_or(plain) {
            let reason = "the token server's token is malformed";
            return Err(Fault::Protocol(reason.to_owned()));
        }
        let mut slot = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        slot.clone_from(&token);
        Ok(token)
    }

    /// Sends the request that `make` makes, with the credentials that the registry wants; once more when these are
    /// first asked for, or are no longer good enough.
    ///
    /// Only the registry itself gets them. Redirected to another host, a request loses them; `reqwest` sees to that.
    pub(super) async fn send(
        &self,
        url: &str,
        make: impl Fn() -> RequestBuilder,
    ) -> Result<Response, Fault> {
        let host_ends = |rest: &str| rest.is_empty() || rest.starts_with('/');
        if !url.strip_prefix(&self.base).is_some_and(host_ends) {
            return Ok(make().send().await?);
        }
        let token = {
            let slot = self.token.lock().unwrap_or_else(PoisonError::into_inner);
            slot.clone()
        };
        if let Some(token) = token {
            let response = make().bearer_auth(&token).send().await?;
            // Tokens live for minutes, uploads for longer.
            if response.status() == StatusCode::UNAUTHORIZED
                && self.operation == RegistryOperation::Push
                && let Some(new) = self.fetch_token().await?
                && new != token
            {
                return Ok(make().bearer_auth(new).send().await?);
            }
            return Ok(response);
        }
        let RegistryAuth::Basic(user, password) = &self.auth else {
            return Ok(make().send().await?);
        };
        // The password goes only to a registry that asks for it.
        if !self.wants_password.load(Ordering::Relaxed) {
            let response = make().send().await?;
            if response.status() != StatusCode::UNAUTHORIZED {
                return Ok(response);
            }
            self.wants_password.store(true, Ordering::Relaxed);
        }
        Ok(make().basic_auth(user, Some(password)).send().await?)
    }
}

impl Registry for Oci {
    async fn manifest(&self, wanted: &str) -> Result<Answer, Fault> {
        let url = self.url(&format!("manifests/{wanted}"));
        let get = || {
            self.http
                .get(&url)
                .header(ACCEPT, MANIFEST_TYPES.join(", "))
        };
        let response = self.send(&url, get).await?;
        let status = response.status();
        let content_type = response.headers().get(CONTENT_TYPE);
        let content_type = content_type.and_then(|value| value.to_str().ok());
        let content_type = content_type.map(str::to_owned);
        let bytes = read_capped(response).await?;
        if !status.is_success() {
            return Err(Fault::from_status(status.as_u16(), &bytes));
        }
        Ok(Answer {
            bytes,
            content_type,
        })
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

/// Where a list goes on (RFC 8288): `Link: </v2/x/tags/list?last=y>; rel="next"`.
fn next_page(response: &Response) -> Option<String> {
    let link = response.headers().get(LINK)?.to_str().ok()?;
    let (target, rest) = link.trim().strip_prefix('<')?.split_once('>')?;
    if !rest.contains("next") {
        return None;
    }
    Some(response.url().join(target).ok()?.to_string())
}

pub(super) async fn read_capped(mut response: Response) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() as u64 > MAX_DOCUMENT {
            return Err(Fault::Protocol(format!(
                "the registry sent more than the {MAX_DOCUMENT} bytes that a manifest may have"
            )));
        }
    }
    Ok(bytes)
}
