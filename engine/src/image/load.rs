//! `load`: images out of an archive that `docker save`, `podman save`, `skopeo` or we have written.
//!
//! Nothing is unpacked under a name of the archive's choosing. The archive is read once, from its start to its end
//! ([`spool`]): blobs and layers go into the store under their own digests, small files into memory, and links become
//! entries of a table, so that there is nothing on the disk that a link could lead to (CVE-2014-9356, CVE-2017-14992).
//! Then the archive's table of contents is read ([`contents`]) and every image is put together, its layers unpacked
//! and checked against its configuration. All images of an archive appear together, at the end, or none.

mod contents;
mod spool;

use std::io::{BufReader, Read};

use bundle_tools::Digest;
use bundle_tools::image as documents;
use bundle_tools::layer::compression::{self, decoder};
use bundle_tools::layout::Layout;

use super::collect::sweep;
use super::layers::{self, Claim};
use super::{Image, Reference, WriterGuard, collect, find, layout, name, sync};
use crate::store::{Event, Kind, Store};

/// An image that was loaded.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The image.
    pub image: Image,
    /// The names the archive gives it.
    pub names: Vec<Reference>,
}

/// Why an archive could not be loaded. Nothing of it is in the store then.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The archive can't be read.
    #[error("cannot read the archive")]
    Archive(#[from] bundle_tools::layer::ArchiveError),
    /// It is compressed in a way nobody here knows.
    #[error("cannot read the archive")]
    Compression(#[from] compression::Error),
    /// It is an archive, but not of images.
    #[error("this is no archive of images: it has neither a manifest.json nor an index.json{0}")]
    NoImages(&'static str),
    /// It has something that no honest archive has.
    #[error("refuse the archive: {path:?} {reason}")]
    Refused {
        /// The member.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Something that is mentioned is not there.
    #[error("the archive is incomplete: {0:?} is missing")]
    Missing(String),
    /// A member could not be copied out of the archive.
    #[error("cannot read {path:?} in the archive")]
    Member {
        /// The member.
        path: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A document in it is malformed.
    #[error("cannot use {what} in the archive")]
    Document {
        /// Which.
        what: String,
        /// What is wrong with it.
        source: documents::Error,
    },
    /// An image's name in it is malformed.
    #[error("cannot use a name in the archive")]
    Name(#[from] super::reference::ParseError),
    /// The content of a layer is not what the image's configuration says.
    #[error("a layer of image {image} is {actual}, but the configuration says {expected}")]
    DiffId {
        /// The image's id.
        image: Digest,
        /// The diff id of the configuration.
        expected: Digest,
        /// The digest of what is there.
        actual: Digest,
    },
    /// The store can't be written.
    #[error(transparent)]
    Image(#[from] super::Error),
}

impl From<crate::store::Error> for Error {
    fn from(error: crate::store::Error) -> Error {
        Error::Image(error.into())
    }
}

impl From<bundle_tools::layout::Error> for Error {
    fn from(error: bundle_tools::layout::Error) -> Error {
        Error::Image(error.into())
    }
}

/// Loads all images of an archive, which may be compressed with gzip or zstd.
///
/// # Errors
/// See [`Error`].
pub fn load(store: &Store, archive: impl Read + Send) -> Result<Vec<Loaded>, Error> {
    sweep(store)?;
    let result = read_and_publish(store, archive);
    // What a failed attempt has put into the store, and of a successful one what no image needs.
    // Where that fails, the next command that removes something does it.
    drop(collect(store));
    let loaded = result?;
    for image in &loaded {
        let names: Vec<String> = image.names.iter().map(ToString::to_string).collect();
        let event = Event::new(Kind::Image, "load", image.image.id.to_string());
        store.emit(&event.with("name", names.join(",")));
    }
    Ok(loaded)
}

fn read_and_publish(store: &Store, archive: impl Read + Send) -> Result<Vec<Loaded>, Error> {
    let _guard = WriterGuard::take(store)?;
    let layout = layout(store)?;
    let archive = decoder(BufReader::with_capacity(1 << 17, archive))?;
    let spooled = spool::spool(&layout, archive)?;
    let planned = contents::read(&layout, &spooled)?;
    for image in &planned {
        unpack(store, &layout, image)?;
        layers::inherit(store, &image.chain())?;
    }
    sync(store)?;
    for image in &planned {
        layers::settle(store, &image.chain())?;
    }
    layout.update_index(|index| -> Result<(), Error> {
        for image in &planned {
            if image.names.is_empty() {
                name::set(index, image.manifest.clone(), None);
            }
            for reference in &image.names {
                name::set(index, image.manifest.clone(), Some(reference));
            }
        }
        Ok(())
    })?;
    let index = layout.index()?;
    let finish = |image: contents::Planned| -> Result<Loaded, Error> {
        Ok(Loaded {
            image: find::load(&layout, &index, &image.manifest)?,
            names: image.names,
        })
    };
    planned.into_iter().map(finish).collect()
}

/// Unpacks the layers that are not there.
fn unpack(store: &Store, layout: &Layout, image: &contents::Planned) -> Result<(), Error> {
    let chain = image.chain();
    let diff_ids = &image.config.rootfs.diff_ids;
    for ((chain, diff_id), layer) in chain.iter().zip(diff_ids).zip(&image.layers) {
        if let Claim::Ours(slot) = layers::claim(store, chain)? {
            layers::from_blob(layout, &layer.digest, slot, diff_id)?;
        }
    }
    Ok(())
}
