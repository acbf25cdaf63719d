//! The steps that made an image, and how much each added.

use bundle_tools::Digest;
use jiff::Timestamp;

use super::{Image, layers};
use crate::store::Store;

/// One step.
#[derive(Debug, Clone)]
pub struct Step {
    /// The image it came to; known of the last step only.
    pub image: Option<Digest>,
    /// When it was done.
    pub created: Option<Timestamp>,
    /// The command.
    pub created_by: String,
    /// Bytes of file content in its layer.
    pub size: u64,
    /// A remark.
    pub comment: String,
}

/// An image's history, the newest step first. Layers that no step accounts for are steps without a command.
#[must_use]
pub fn history(store: &Store, image: &Image) -> Vec<Step> {
    let mut chain = image.layers.iter();
    let mut steps: Vec<Step> = Vec::new();
    for entry in &image.config.history {
        let layer = match entry.empty_layer {
            true => None,
            false => chain.next(),
        };
        steps.push(Step {
            image: None,
            created: entry.created.as_ref().and_then(|text| text.parse().ok()),
            created_by: entry.created_by.clone().unwrap_or_default(),
            size: layer.map_or(0, |chain| layers::size(store, chain)),
            comment: entry.comment.clone().unwrap_or_default(),
        });
    }
    for layer in chain {
        steps.push(Step {
            image: None,
            created: image.created(),
            created_by: String::new(),
            size: layers::size(store, layer),
            comment: String::new(),
        });
    }
    if let Some(last) = steps.last_mut() {
        last.image = Some(image.id.clone());
    }
    steps.reverse();
    steps
}
