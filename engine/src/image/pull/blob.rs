//! One layer on its way: fetched with resume and retry, hashed and stored, and unpacked while it arrives.
//!
//! ```text
//! network ──► hash, write the blob ──► inflate ──► hash, apply
//! (runtime)   (this thread)            (thread)    (thread)
//! ```

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bundle_tools::Digest;
use bundle_tools::layout::BlobWriter;
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::{Error, Job, LayerState, LayerTask, Result};
use crate::image::layers::Slot;
use crate::image::registry::{Fault, Registry, pause};
use crate::image::unpack::{self, PipeWriter};
use crate::store::Context;

/// Chunks (of some 16 KiB) that may wait between the network and the disk.
const QUEUE: usize = 64;
/// Attempts without a single byte of progress before a transfer is given up.
const ATTEMPTS: u32 = 5;

impl Job<'_> {
    /// Fetches a blob; unpacks it into `slot` on the way.
    pub(super) fn fetch_blob(&self, task: LayerTask<'_>, slot: Option<Slot>) -> Result<()> {
        let blob = task.blob;
        let (sender, receiver) = channel(QUEUE);
        let (report, mut reports) = channel(4);
        let registry = Arc::clone(&self.registry);
        let (digest, size) = (blob.digest.clone(), blob.size);
        let transfer = self
            .runtime
            .spawn(async move { transfer(&*registry, &digest, size, &sender, &report).await });

        let received = std::thread::scope(|scope| {
            let (pipe, unpacker) = match &slot {
                Some(slot) => {
                    let (writer, reader) = unpack::pipe();
                    let into = slot.diff();
                    let diff_id = task.diff_id;
                    let unpacker = scope.spawn(move || unpack::unpack(reader, &into, diff_id));
                    (Some(writer), Some(unpacker))
                }
                None => (None, None),
            };
            let writer = self.layout.blob_writer()?;
            let stored = self.store_chunks(task, receiver, writer, pipe.as_ref(), &mut reports);
            // Not before the transfer says that this was all may the unpacker believe it.
            let transferred = self
                .runtime
                .block_on(transfer)
                .unwrap_or_else(|error| Err(Fault::Protocol(error.to_string())));
            if let (Some(pipe), Ok(())) = (&pipe, &transferred) {
                let _ = pipe.end();
            }
            drop(pipe);
            let unpacked = unpacker
                .map(|thread| {
                    thread
                        .join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .transpose();
            // In the order of causes: bytes that never came or were others make everything after them fail too.
            let writer = stored?;
            transferred.map_err(|source| layer_error(&blob.digest, source))?;
            commit(writer, &blob.digest)?;
            unpacked.map_err(|source| Error::Unpack {
                digest: blob.digest.clone(),
                source,
            })
        })?;
        match (slot, received) {
            (Some(slot), Some(unpacked)) => {
                slot.note_implied(&unpacked.implied)?;
                Ok(slot.finish(unpacked.bytes)?)
            }
            _ => Ok(()),
        }
    }

    fn store_chunks(
        &self,
        task: LayerTask<'_>,
        mut chunks: Receiver<Bytes>,
        mut writer: BlobWriter,
        pipe: Option<&PipeWriter>,
        reports: &mut Receiver<String>,
    ) -> Result<BlobWriter> {
        let LayerTask { blob, .. } = task;
        let mut done = 0;
        let mut unpacking = true;
        while let Some(chunk) = chunks.blocking_recv() {
            if self.given_up.load(Ordering::Relaxed) {
                return Err(Error::GivenUp);
            }
            while let Ok(reason) = reports.try_recv() {
                self.progress
                    .layer(&blob.digest, LayerState::Retrying(&reason));
            }
            writer
                .write_all(&chunk)
                .context("write a blob in", self.layout.path())
                .map_err(Error::from)?;
            done += chunk.len() as u64;
            // When the unpacker has given up, the digest of the whole still tells whether that was the blob's fault.
            if let Some(pipe) = pipe
                && unpacking
            {
                unpacking = pipe.send(chunk).is_ok();
            }
            let total = blob.size;
            self.progress
                .layer(&blob.digest, LayerState::Downloading { done, total });
        }
        // Cut short, it is no download that is complete; the digest will say so.
        if done == blob.size {
            self.progress.layer(&blob.digest, LayerState::Extracting);
        }
        Ok(writer)
    }
}

fn commit(writer: BlobWriter, digest: &Digest) -> Result<()> {
    match writer.commit(Some(digest)) {
        Ok(_) => Ok(()),
        Err(bundle_tools::layout::Error::Digest { actual, .. }) => {
            let actual = actual.to_string();
            Err(layer_error(digest, Fault::WrongDigest { actual }))
        }
        Err(error) => Err(error.into()),
    }
}

fn layer_error(digest: &Digest, source: Fault) -> Error {
    Error::Layer {
        digest: digest.clone(),
        source,
    }
}

/// Fetches exactly `size` bytes, however often the connection breaks.
async fn transfer(
    registry: &impl Registry,
    digest: &Digest,
    size: u64,
    out: &Sender<Bytes>,
    reports: &Sender<String>,
) -> std::result::Result<(), Fault> {
    let mut done = 0;
    let mut failures = 0;
    loop {
        let before = done;
        let fault = match attempt(registry, digest, size, &mut done, out).await {
            Err(fault) if done < size || matches!(fault, Fault::Oversized { .. }) => fault,
            _ => return Ok(()),
        };
        if !fault.is_passing() {
            return Err(fault);
        }
        if done > before {
            failures = 0;
        }
        failures += 1;
        if failures >= ATTEMPTS {
            return Err(fault);
        }
        // Somebody may be slow to listen; that is no reason to wait.
        let _ = reports.try_send(fault.to_string());
        tokio::time::sleep(pause(failures)).await;
    }
}

/// One connection's worth of the blob, from byte `done` on.
async fn attempt(
    registry: &impl Registry,
    digest: &Digest,
    size: u64,
    done: &mut u64,
    out: &Sender<Bytes>,
) -> std::result::Result<(), Fault> {
    let mut part = match registry.blob(digest, *done).await {
        // It has no such byte, so its blob ends here.
        Err(Fault::Server { code: 416, .. }) => return Err(Fault::Truncated { done: *done, size }),
        other => other?,
    };
    // A server that can't resume starts again.
    let mut skip = done.saturating_sub(part.offset);
    while let Some(chunk) = part.stream.next().await {
        let mut chunk = chunk.map_err(|error| Fault::from_stream(&error))?;
        if skip > 0 {
            let known = usize::try_from(skip).map_or(chunk.len(), |skip| skip.min(chunk.len()));
            drop(chunk.split_to(known));
            skip -= known as u64;
        }
        if chunk.len() as u64 > size - *done {
            return Err(Fault::Oversized { size });
        }
        *done += chunk.len() as u64;
        if !chunk.is_empty() && out.send(chunk).await.is_err() {
            return Err(Fault::Protocol("nobody wants the rest".to_owned()));
        }
    }
    if *done < size {
        return Err(Fault::Truncated { done: *done, size });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Mutex;

    use super::*;
    use crate::image::registry::{Answer, Part};

    /// A registry of one blob whose connections break after so many bytes, one entry a connection.
    struct Flaky {
        content: Vec<u8>,
        resumes: bool,
        breaks: Mutex<Vec<usize>>,
    }

    impl Registry for Flaky {
        async fn manifest(&self, _: &str) -> std::result::Result<Answer, Fault> {
            Err(Fault::NotFound)
        }

        async fn blob(&self, _: &Digest, offset: u64) -> std::result::Result<Part, Fault> {
            let start = if self.resumes {
                usize::try_from(offset).unwrap()
            } else {
                0
            };
            let limit = self.breaks.lock().unwrap().pop();
            let end = limit.map_or(self.content.len(), |limit| {
                self.content.len().min(start + limit)
            });
            let mut items: Vec<io::Result<Bytes>> = self.content[start..end]
                .chunks(3)
                .map(|chunk| Ok(Bytes::copy_from_slice(chunk)))
                .collect();
            if limit.is_some() {
                items.push(Err(io::ErrorKind::ConnectionReset.into()));
            }
            Ok(Part {
                offset: start as u64,
                stream: futures_util::stream::iter(items).boxed(),
            })
        }
    }

    fn run(
        resumes: bool,
        breaks: &[usize],
        size: u64,
    ) -> (std::result::Result<(), Fault>, Vec<u8>) {
        let registry = Flaky {
            content: (0..=99).collect(),
            resumes,
            breaks: Mutex::new(breaks.to_vec()),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        let digest = Digest::sha256_of(&registry.content);
        runtime.unwrap().block_on(async {
            let (sender, mut receiver) = channel(1000);
            let (report, _reports) = channel(4);
            let result = transfer(&registry, &digest, size, &sender, &report).await;
            drop(sender);
            let mut bytes = Vec::new();
            while let Some(chunk) = receiver.recv().await {
                bytes.extend_from_slice(&chunk);
            }
            (result, bytes)
        })
    }

    #[test]
    fn broken_transfers_go_on_where_they_stopped() {
        let whole: Vec<u8> = (0..=99).collect();
        for resumes in [true, false] {
            let breaks = [40, 60, 31, 50, 7, 0, 0, 10];
            let (result, bytes) = run(resumes, &breaks, 100);
            assert!(result.is_ok(), "{resumes}: {result:?}");
            assert_eq!(bytes, whole);
        }
    }

    #[test]
    fn a_transfer_without_progress_is_given_up() {
        let (result, bytes) = run(true, &[0; 20], 100);
        assert!(matches!(result, Err(Fault::Dropped(_))), "{result:?}");
        assert!(bytes.is_empty());
        let (result, _) = run(true, &[], 120);
        assert!(
            matches!(
                result,
                Err(Fault::Truncated {
                    done: 100,
                    size: 120
                })
            ),
            "{result:?}"
        );
        let (result, _) = run(true, &[], 90);
        assert!(
            matches!(result, Err(Fault::Oversized { size: 90 })),
            "{result:?}"
        );
    }
}
