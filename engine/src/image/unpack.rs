//! From a compressed layer to a directory: inflate in one thread, hash and apply in another.
//!
//! Inflating is the slowest step and file system calls come second, so these two overlap; whoever feeds the
//! compressed bytes (a download) is a third.

use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use bundle_tools::Digest;
use bundle_tools::digest::{HashReader, Hasher};
use bundle_tools::layer::apply::{self, Options, Whiteouts, apply};
use bundle_tools::layer::compression::{self, decoder};
use bytes::Bytes;

/// Bytes inflated at a time.
const CHUNK: usize = 128 << 10;
/// Chunks that may wait between two threads.
const QUEUE: usize = 16;

/// Why a layer's archive could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The compressed stream is damaged.
    #[error("cannot decompress the layer")]
    Inflate(#[source] io::Error),
    /// The compression is none that layers may have.
    #[error(transparent)]
    Compression(#[from] compression::Error),
    /// The archive in it is.
    #[error("cannot unpack the layer into {path}")]
    Apply {
        /// The directory.
        path: PathBuf,
        /// What the archive or the kernel refused.
        source: apply::Error,
    },
    /// The directory can't be opened.
    #[error("cannot open {path}")]
    Open {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The archive is not the one that the image's configuration lists.
    #[error("the layer unpacks to {actual}, but the image's configuration says {expected}")]
    DiffId {
        /// The diff id in the configuration.
        expected: Digest,
        /// The digest of the archive.
        actual: Digest,
    },
}

/// What was unpacked.
#[derive(Debug)]
pub(super) struct Unpacked {
    /// Bytes of file content.
    pub(super) bytes: u64,
    /// The archive's digest.
    pub(super) digest: Digest,
    /// Directories that the archive only implies.
    pub(super) implied: Vec<PathBuf>,
}

/// Unpacks `compressed` into the directory `into`, for use as one layer of an overlay.
///
/// The compressed stream is read to its end unless something fails.
pub(super) fn unpack(
    compressed: impl BufRead + Send,
    into: &Path,
    diff_id: &Digest,
) -> Result<Unpacked, Error> {
    let (sender, archive) = pipe();
    std::thread::scope(|scope| {
        let inflate = scope.spawn(move || inflate(compressed, &sender));
        let applied = apply_archive(archive, into, Hasher::like(diff_id));
        // Why the stream ended early is the cause; that the archive is cut off is what follows from it.
        match inflate.join() {
            Ok(Ok(())) => {}
            Ok(Err(Stopped::Failed(error))) => return Err(error),
            Ok(Err(Stopped::ReaderGone)) => {}
            Err(panic) => std::panic::resume_unwind(panic),
        }
        let unpacked = applied?;
        if unpacked.digest != *diff_id {
            return Err(Error::DiffId {
                expected: diff_id.clone(),
                actual: unpacked.digest,
            });
        }
        Ok(unpacked)
    })
}

/// Applies an uncompressed archive.
pub(super) fn apply_archive(
    archive: impl Read,
    into: &Path,
    hasher: Hasher,
) -> Result<Unpacked, Error> {
    let root = std::fs::File::open(into).map_err(|source| Error::Open {
        path: into.to_owned(),
        source,
    })?;
    let failed = |source| Error::Apply {
        path: into.to_owned(),
        source,
    };
    let mut archive = HashReader::with(archive, hasher);
    let options = Options {
        whiteouts: Whiteouts::Overlay,
        ownership: rustix::process::geteuid().is_root(),
        ..Options::default()
    };
    let summary = apply(&mut archive, &root, &options).map_err(failed)?;
    archive.drain().map_err(Error::Inflate)?;
    Ok(Unpacked {
        bytes: summary.bytes,
        digest: archive.finish().0,
        implied: summary.implied,
    })
}

enum Stopped {
    Failed(Error),
    ReaderGone,
}

fn inflate(compressed: impl BufRead + Send, out: &PipeWriter) -> Result<(), Stopped> {
    let failed = |error: Error| {
        // The other end must not take this for the end of the archive.
        let _ = out.fail("the compressed stream is damaged");
        Stopped::Failed(error)
    };
    let mut decoder = decoder(compressed).map_err(|error| failed(error.into()))?;
    loop {
        let mut chunk = vec![0; CHUNK];
        let mut filled = 0;
        while filled < CHUNK {
            match decoder.read(&mut chunk[filled..]) {
                Ok(0) => break,
                Ok(length) => filled += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(Error::Inflate(error))),
            }
        }
        if filled == 0 {
            return out.end().map_err(|_| Stopped::ReaderGone);
        }
        chunk.truncate(filled);
        out.send(chunk.into()).map_err(|_| Stopped::ReaderGone)?;
    }
}

/// A pipe between threads that passes chunks on without copying them.
pub(super) fn pipe() -> (PipeWriter, PipeReader) {
    let (sender, receiver) = sync_channel(QUEUE);
    let reader = PipeReader {
        receiver,
        chunk: Bytes::new(),
        ended: false,
    };
    (PipeWriter(sender), reader)
}

/// The end that is written to. Dropping it without [`PipeWriter::end`] is an error at the other end.
#[derive(Debug)]
pub(super) struct PipeWriter(SyncSender<io::Result<Bytes>>);

/// Nobody reads any more.
#[derive(Debug)]
pub(super) struct ReaderGone;

impl PipeWriter {
    pub(super) fn send(&self, chunk: Bytes) -> Result<(), ReaderGone> {
        if chunk.is_empty() {
            return Ok(());
        }
        self.0.send(Ok(chunk)).map_err(|_| ReaderGone)
    }

    /// Says that everything was sent.
    pub(super) fn end(&self) -> Result<(), ReaderGone> {
        self.0.send(Ok(Bytes::new())).map_err(|_| ReaderGone)
    }

    /// Says that there is more, and that it won't come.
    pub(super) fn fail(&self, reason: &'static str) -> Result<(), ReaderGone> {
        let error = io::Error::new(io::ErrorKind::UnexpectedEof, reason);
        self.0.send(Err(error)).map_err(|_| ReaderGone)
    }
}

impl io::Write for PipeWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send(Bytes::copy_from_slice(bytes))
            .map_err(|ReaderGone| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The end that is read from.
#[derive(Debug)]
pub(super) struct PipeReader {
    receiver: Receiver<io::Result<Bytes>>,
    chunk: Bytes,
    ended: bool,
}

impl BufRead for PipeReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.chunk.is_empty() && !self.ended {
            match self.receiver.recv() {
                Ok(Ok(chunk)) => {
                    self.ended = chunk.is_empty();
                    self.chunk = chunk;
                }
                Ok(Err(error)) => return Err(error),
                Err(_) => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the stream was cut off",
                    ));
                }
            }
        }
        Ok(&self.chunk)
    }

    fn consume(&mut self, amount: usize) {
        let _ = self.chunk.split_to(amount);
    }
}

impl Read for PipeReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(buffer.len());
        buffer[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_pipe_tells_its_end_from_a_cut() {
        let (mut writer, mut reader) = pipe();
        writer.write_all(b"one").unwrap();
        writer.write_all(b"two").unwrap();
        writer.end().unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "onetwo");

        let (mut writer, mut reader) = pipe();
        writer.write_all(b"one").unwrap();
        drop(writer);
        assert!(reader.read_to_string(&mut text).is_err());
    }
}
