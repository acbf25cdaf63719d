//! What the engine occupies on disk, and what of it could be had back.

use std::collections::{BTreeMap, HashMap, HashSet};

use bundle_tools::Digest;

use crate::build;
use crate::container::{self, find};
use crate::image::{self, Image, layers};
use crate::store::{Store, size};
use crate::volume;

/// An image's part.
#[derive(Debug, Clone)]
pub struct ImageUsage {
    /// The image.
    pub image: Image,
    /// Bytes of its unpacked layers and of its blobs.
    pub size: u64,
    /// Of these, what other images have as well.
    pub shared: u64,
    /// Containers made of it.
    pub containers: usize,
}

/// A container's part.
#[derive(Debug, Clone)]
pub struct ContainerUsage {
    /// The container.
    pub handle: container::Handle,
    /// What it is doing.
    pub live: container::Live,
    /// Bytes it wrote, log included.
    pub size: u64,
}

/// A volume's part.
#[derive(Debug, Clone)]
pub struct VolumeUsage {
    /// Its name.
    pub name: String,
    /// Bytes in it.
    pub size: u64,
    /// Containers that mention it.
    pub containers: usize,
}

/// Everything.
#[derive(Debug, Clone, Default)]
pub struct Usage {
    /// The images, newest first.
    pub images: Vec<ImageUsage>,
    /// The containers, newest first.
    pub containers: Vec<ContainerUsage>,
    /// The volumes, by name.
    pub volumes: Vec<VolumeUsage>,
    /// Bytes of all blobs and unpacked layers but those of the build cache, each counted once, whether an image needs
    /// them or not.
    pub image_bytes: u64,
    /// Of these, what images with containers need.
    pub image_bytes_in_use: u64,
    /// Layers that only the build cache needs.
    pub cached: usize,
    /// Bytes of these.
    pub cached_bytes: u64,
}

/// Adds everything up. What vanishes meanwhile is not counted.
///
/// # Errors
/// When the store can't be read.
pub fn usage(store: &Store) -> Result<Usage, super::check::Error> {
    let mut usage = Usage::default();
    let mut volumes: BTreeMap<String, usize> = BTreeMap::new();
    let mut users: HashMap<Digest, usize> = HashMap::new();
    for handle in find::all(store)? {
        let Ok((_, live)) = handle.live(store) else {
            continue;
        };
        *users.entry(handle.config.image_id.clone()).or_default() += 1;
        for name in handle.config.options.volumes.iter().filter_map(named) {
            *volumes.entry(name.to_owned()).or_default() += 1;
        }
        usage.containers.push(ContainerUsage {
            size: container::size::written(&handle) + size::of_tree(&handle.log()),
            live,
            handle,
        });
    }
    for volume in volume::list(store)? {
        // What is mounted when it is used is not kept here.
        let size = match volume.is_mounted_on_use() {
            true => 0,
            false => size::of_tree(&volume.data(store)),
        };
        usage.volumes.push(VolumeUsage {
            size,
            containers: volumes.get(&volume.name).copied().unwrap_or(0),
            name: volume.name,
        });
    }
    images(store, &users, &mut usage)?;
    Ok(usage)
}

fn named(volume: &container::model::Volume) -> Option<&str> {
    volume.source.name().filter(|_| volume.source.is_volume())
}

/// A blob or unpacked layer.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Part {
    Blob(String),
    Layer(String),
}

fn images(
    store: &Store,
    users: &HashMap<Digest, usize>,
    usage: &mut Usage,
) -> Result<(), super::check::Error> {
    let mut owners: HashMap<Part, usize> = HashMap::new();
    let mut parts_of = Vec::new();
    let mut in_use: HashSet<Part> = HashSet::new();
    for listed in image::list(store)? {
        let parts = parts(store, &listed.image);
        for (part, _) in &parts {
            *owners.entry(part.clone()).or_default() += 1;
        }
        let containers = users.get(&listed.image.id).copied().unwrap_or(0);
        if containers > 0 {
            for (part, bytes) in &parts {
                if in_use.insert(part.clone()) {
                    usage.image_bytes_in_use += bytes;
                }
            }
        }
        parts_of.push((listed.image, containers, parts));
    }
    for (image, containers, parts) in parts_of {
        let shared = parts
            .iter()
            .filter(|(part, _)| owners.get(part).is_some_and(|&count| count > 1));
        usage.images.push(ImageUsage {
            size: parts.iter().map(|(_, bytes)| bytes).sum(),
            shared: shared.map(|(_, bytes)| bytes).sum(),
            image,
            containers,
        });
    }
    let cached: HashSet<String> = build::cached_layers(store)?.into_iter().collect();
    for hex in cached {
        let chain = format!("sha256:{hex}").parse::<Digest>();
        if owners.contains_key(&Part::Layer(hex)) {
            continue;
        }
        if let Ok(chain) = chain
            && layers::directory(store, &chain).is_dir()
        {
            usage.cached += 1;
            usage.cached_bytes += layers::size(store, &chain);
        }
    }
    usage.image_bytes = layers::total_size(store)?.saturating_sub(usage.cached_bytes)
        + size::of_tree(&store.root().join("blobs"));
    Ok(())
}

fn parts(store: &Store, image: &Image) -> Vec<(Part, u64)> {
    let mut parts: Vec<(Part, u64)> = image
        .layers
        .iter()
        .map(|chain| {
            (
                Part::Layer(chain.hex().to_owned()),
                layers::size(store, chain),
            )
        })
        .collect();
    let blobs = image::blobs(store, image).unwrap_or_default();
    parts.extend(
        blobs
            .into_iter()
            .map(|blob| (Part::Blob(blob.digest.hex().to_owned()), blob.size)),
    );
    parts
}
