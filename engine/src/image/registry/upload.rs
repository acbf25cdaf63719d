//! Blobs and manifests on their way into a registry.
//!
//! A blob goes in one request after the one that opens the upload. When that breaks, the registry is asked how far it
//! got, and the rest follows; a registry that has forgotten the upload gets it from the start.
//!
//! Governing text: distribution-spec, "Push".

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bundle_tools::Digest;
use bytes::Bytes;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, LOCATION, RANGE};
use reqwest::{Body, Method, Response, StatusCode, Url};
use tokio::sync::mpsc::{Receiver, channel};

use super::client::{Oci, read_capped};
use super::fault::Fault;
use super::pause;

/// Bytes read from the disk at a time.
const CHUNK: usize = 256 << 10;
/// Chunks that may wait between the disk and the network.
const QUEUE: usize = 4;
/// Attempts without progress before an upload is given up.
const ATTEMPTS: u32 = 5;

/// A blob to be sent.
#[derive(Debug, Clone)]
pub(in crate::image) struct Content {
    pub(in crate::image) file: Arc<File>,
    pub(in crate::image) digest: Digest,
    pub(in crate::image) size: u64,
    /// Bytes that were handed to the network.
    pub(in crate::image) sent: Arc<AtomicU64>,
}

impl Content {
    /// The bytes from `offset` on, as the body of a request.
    fn body(&self, offset: u64) -> Body {
        let (sender, receiver) = channel::<io::Result<Bytes>>(QUEUE);
        let file = Arc::clone(&self.file);
        let size = self.size;
        tokio::task::spawn_blocking(move || {
            let mut at = offset;
            while at < size {
                let wanted = usize::try_from(size - at).unwrap_or(CHUNK).min(CHUNK);
                let mut chunk = vec![0; wanted];
                let read = file.read_exact_at(&mut chunk, at);
                at += wanted as u64;
                let failed = read.is_err();
                // Nobody listens any more: the request has ended.
                if sender.blocking_send(read.map(|()| chunk.into())).is_err() || failed {
                    return;
                }
            }
        });
        self.sent.store(offset, Ordering::Relaxed);
        let state = (receiver, Arc::clone(&self.sent));
        let next = |(mut receiver, sent): (Receiver<io::Result<Bytes>>, Arc<AtomicU64>)| async {
            let chunk = receiver.recv().await?;
            if let Ok(chunk) = &chunk {
                sent.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            }
            Some((chunk, (receiver, sent)))
        };
        Body::wrap_stream(futures_util::stream::unfold(state, next))
    }
}

/// What a registry says to somebody who wants to upload a blob.
enum Begun {
    /// It took the blob over from another repository.
    Mounted,
    /// Send it there.
    At(Url),
}

impl Oci {
    /// Whether the repository has the blob.
    pub(in crate::image) async fn has_blob(&self, digest: &Digest) -> Result<bool, Fault> {
        let url = self.url(&format!("blobs/{digest}"));
        let response = self
            .send(&url, || self.http.request(Method::HEAD, &url))
            .await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(false),
            status if status.is_success() => Ok(true),
            _ => Err(refusal(response).await),
        }
    }

    /// Brings a blob into the repository: out of another one of the registry if it can do that, or else by sending it,
    /// however often the connection breaks. Says whether it was taken over.
    ///
    /// `retrying` is told why it is tried again.
    pub(in crate::image) async fn upload(
        &self,
        content: &Content,
        from: Option<&str>,
        retrying: impl Fn(&Fault),
    ) -> Result<bool, Fault> {
        let mut place: Option<Url> = None;
        if let Some(from) = from {
            let query = [("mount", content.digest.as_str()), ("from", from)];
            match self.begin(&query).await {
                Ok(Begun::Mounted) => return Ok(true),
                Ok(Begun::At(url)) => place = Some(url),
                // We may not read there, or it can't do that. What else is wrong shows in a moment.
                Err(_) => {}
            }
        }
        let mut failures = 0;
        let mut offset = 0;
        loop {
            let fault = match self.upload_from(content, &mut place, offset).await {
                Ok(()) => return Ok(false),
                Err(fault) => fault,
            };
            failures += 1;
            if !fault.is_passing() || failures >= ATTEMPTS {
                return Err(fault);
            }
            retrying(&fault);
            tokio::time::sleep(pause(failures)).await;
            let before = offset;
            offset = match &mut place {
                Some(url) => self.progress_of(url).await.unwrap_or(0).min(content.size),
                None => 0,
            };
            if offset == 0 {
                place = None;
            }
            if offset > before {
                failures = 0;
            }
        }
    }

    async fn upload_from(
        &self,
        content: &Content,
        place: &mut Option<Url>,
        offset: u64,
    ) -> Result<(), Fault> {
        let url = match place {
            Some(url) => url.clone(),
            None => match self.begin(&[]).await? {
                Begun::Mounted => return Ok(()),
                Begun::At(url) => place.insert(url).clone(),
            },
        };
        let left = content.size - offset;
        if offset == 0 {
            return self.finish(url, content, Some(content)).await;
        }
        // The rest of an upload that broke.
        let range = format!("{offset}-{}", content.size.saturating_sub(1));
        let patch = || {
            self.http
                .patch(url.clone())
                .header(CONTENT_TYPE, "application/octet-stream")
                .header(CONTENT_RANGE, &range)
                .header(CONTENT_LENGTH, left)
                .body(content.body(offset))
        };
        let mut url = url.clone();
        if left > 0 {
            let response = self.send(url.as_str(), patch).await?;
            if !response.status().is_success() {
                return Err(refusal(response).await);
            }
            url = location(&url, response.headers())?;
            *place = Some(url.clone());
        }
        self.finish(url, content, None).await
    }

    /// Closes the upload with the blob's digest; `body` is what has not been sent yet.
    async fn finish(
        &self,
        mut url: Url,
        content: &Content,
        body: Option<&Content>,
    ) -> Result<(), Fault> {
        url.query_pairs_mut()
            .append_pair("digest", content.digest.as_str());
        let put = || {
            let request = self
                .http
                .put(url.clone())
                .header(CONTENT_TYPE, "application/octet-stream");
            match body {
                Some(content) => request
                    .header(CONTENT_LENGTH, content.size)
                    .body(content.body(0)),
                None => request.header(CONTENT_LENGTH, 0),
            }
        };
        let response = self.send(url.as_str(), put).await?;
        match response.status() {
            status if status.is_success() => Ok(()),
            _ => Err(refusal(response).await),
        }
    }

    /// Stores a manifest under a tag or its digest.
    pub(in crate::image) async fn put_manifest(
        &self,
        at: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<(), Fault> {
        let url = self.url(&format!("manifests/{at}"));
        let put = || {
            self.http
                .put(&url)
                .header(CONTENT_TYPE, media_type)
                .body(bytes.to_vec())
        };
        let response = self.send(&url, put).await?;
        match response.status() {
            status if status.is_success() => Ok(()),
            _ => Err(refusal(response).await),
        }
    }

    async fn begin(&self, query: &[(&str, &str)]) -> Result<Begun, Fault> {
        let mut url = Url::parse(&self.url("blobs/uploads/"))
            .map_err(|error| Fault::Protocol(error.to_string()))?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let post = || self.http.post(url.clone()).header(CONTENT_LENGTH, 0);
        let response = self.send(url.as_str(), post).await?;
        match response.status() {
            StatusCode::CREATED if !query.is_empty() => Ok(Begun::Mounted),
            status if status.is_success() => Ok(Begun::At(location(&url, response.headers())?)),
            _ => Err(refusal(response).await),
        }
    }

    /// How many bytes of a broken upload the registry has.
    async fn progress_of(&self, url: &mut Url) -> Option<u64> {
        let get = || self.http.get(url.clone());
        let response = self.send(url.as_str(), get).await.ok()?;
        if !response.status().is_success() {
            return None;
        }
        let range = response.headers().get(RANGE)?.to_str().ok()?;
        let range = range.strip_prefix("bytes=").unwrap_or(range);
        let last: u64 = range.split_once('-')?.1.parse().ok()?;
        if let Ok(next) = location(url, response.headers()) {
            *url = next;
        }
        // An upload that has nothing says "0-0" as well as one that has a byte.
        Some(if last == 0 { 0 } else { last + 1 })
    }
}

/// Where the registry wants the next request of an upload.
fn location(base: &Url, headers: &HeaderMap) -> Result<Url, Fault> {
    let refuse = |what: &str| Fault::Protocol(format!("the registry {what}"));
    let text = headers
        .get(LOCATION)
        .and_then(|value| value.to_str().ok())
        .ok_or_else(|| refuse("opens an upload and does not say where"))?;
    let url = base
        .join(text)
        .map_err(|_| refuse("opens an upload at a malformed address"))?;
    match url.scheme() {
        "https" => Ok(url),
        // What began with TLS must not go on without.
        "http" if base.scheme() == "http" => Ok(url),
        _ => Err(refuse("opens an upload at an address without TLS")),
    }
}

/// What an answer without success means.
async fn refusal(response: Response) -> Fault {
    let status = response.status();
    let body = read_capped(response).await.unwrap_or_default();
    if body.is_empty() {
        let words = status.canonical_reason().unwrap_or("no reason given");
        return Fault::from_status(status.as_u16(), words.to_lowercase().as_bytes());
    }
    Fault::from_status(status.as_u16(), &body)
}
