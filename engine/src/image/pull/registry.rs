//! What is asked of a registry, and the answer of `oci-client`.
//!
//! Governing text: distribution-spec, "Pull".

use std::future::Future;
use std::io;

use bundle_tools::Digest;
use bundle_tools::image::{MAX_DOCUMENT, media_type};
use bytes::Bytes;
use futures_util::stream::BoxStream;
use oci_client::client::{BlobResponse, Client};
use oci_client::secrets::RegistryAuth;
use oci_client::{Reference as OciReference, RegistryOperation};
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{Response, StatusCode};

use super::endpoint::Endpoint;
use super::fault::Fault;
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
pub(super) struct Answer {
    pub(super) bytes: Vec<u8>,
    /// What the registry calls it.
    pub(super) content_type: Option<String>,
}

/// The rest of a blob, or all of it again.
pub(super) struct Part {
    /// Where in the blob the stream starts: where it was asked to, or 0.
    pub(super) offset: u64,
    /// The bytes.
    pub(super) stream: BoxStream<'static, io::Result<Bytes>>,
}

/// A registry through `oci-client`: authentication and blobs. Manifests are asked for here, because `oci-client` reads
/// whatever a server sends into memory, without a limit, and doesn't tell the content type.
pub(super) struct Oci {
    client: Client,
    http: reqwest::Client,
    /// Scheme and host.
    base: String,
    repository: OciReference,
    auth: RegistryAuth,
    /// What the token server gave, where there is one.
    token: Option<String>,
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
        reference: &Reference,
        auth: RegistryAuth,
    ) -> Result<Oci, Fault> {
        let (client, http) = endpoint.clients()?;
        let repository = OciReference::with_tag(
            reference.registry().to_owned(),
            reference.repository().to_owned(),
            "latest".to_owned(),
        );
        let token = client
            .auth(&repository, &auth, RegistryOperation::Pull)
            .await?;
        // It becomes a header, and must not become two.
        let plain = |token: &String| token.bytes().all(|byte| byte.is_ascii_graphic());
        if !token.as_ref().is_none_or(plain) {
            let reason = "the token server's token is malformed";
            return Err(Fault::Protocol(reason.to_owned()));
        }
        Ok(Oci {
            client,
            http,
            base: format!("{}://{}", endpoint.scheme(), repository.resolve_registry()),
            repository,
            auth,
            token,
        })
    }

    /// Redirected to another host, a request loses its credentials; `reqwest` sees to that.
    async fn request(&self, url: &str) -> Result<Response, Fault> {
        let request = || self.http.get(url).header(ACCEPT, MANIFEST_TYPES.join(", "));
        if let Some(token) = &self.token {
            return Ok(request().bearer_auth(token).send().await?);
        }
        let response = request().send().await?;
        match &self.auth {
            // The password goes only to a registry that asks for it.
            RegistryAuth::Basic(user, password)
                if response.status() == StatusCode::UNAUTHORIZED =>
            {
                Ok(request().basic_auth(user, Some(password)).send().await?)
            }
            _ => Ok(response),
        }
    }
}

impl Registry for Oci {
    async fn manifest(&self, wanted: &str) -> Result<Answer, Fault> {
        let repository = self.repository.repository();
        let url = format!("{}/v2/{repository}/manifests/{wanted}", self.base);
        let response = self.request(&url).await?;
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

async fn read_capped(mut response: Response) -> Result<Vec<u8>, Fault> {
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
