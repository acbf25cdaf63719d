//! What is published at this moment, for the userland forwarder.

use std::path::PathBuf;

use super::{Attachment, PublishedPort, Result, member};
use crate::store::{Store, make_dir};

/// A container with published ports.
#[derive(Debug)]
pub(crate) struct Publisher {
    /// Its id.
    pub(crate) id: String,
    /// Where its ports lead.
    pub(crate) attachment: Attachment,
    /// The ports.
    pub(crate) ports: Vec<PublishedPort>,
}

/// The directory in which bridges come and go, and those of the bridges that are there: their changes are changes of
/// [`publishers`].
pub(crate) fn directories(store: &Store) -> Result<(PathBuf, Vec<PathBuf>)> {
    let all = member::directory(store);
    make_dir(&all)?;
    Ok((all, member::bridges(store)?))
}

/// Every container with published ports, from the moment before it is connected to the one after it is disconnected.
pub(crate) fn publishers(store: &Store) -> Result<Vec<Publisher>> {
    let mut publishers = Vec::new();
    for bridge in member::bridges(store)? {
        let members = member::read_all(&bridge)?.into_iter();
        let publishing = members.filter(|(_, member)| !member.ports.is_empty());
        publishers.extend(publishing.map(|(id, member)| Publisher {
            id,
            attachment: member.attachment,
            ports: member.ports,
        }));
    }
    Ok(publishers)
}
