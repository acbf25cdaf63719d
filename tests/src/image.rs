//! Images made by the tests' own small code, so that a mistake of the programs under test in
//! writing images cannot hide one in reading them. They are written as OCI image layouts.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::programs::on_path;

/// How a layer is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// A tar archive as it is.
    Plain,
    /// gzip.
    Gzip,
    /// zstd, by the machine's program of that name.
    Zstd,
}

/// Whose media types a manifest uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// The OCI image specification.
    Oci,
    /// Docker's schema 2.
    Docker,
}

/// A layer that is in a layout.
#[derive(Debug, Clone)]
pub struct Layer {
    packing: Packing,
    digest: String,
    size: u64,
    diff_id: String,
}

/// An OCI image layout directory.
#[derive(Debug)]
pub struct Layout {
    directory: PathBuf,
}

impl Layout {
    /// Makes an empty layout.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn create(directory: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(directory.join("blobs/sha256"))?;
        std::fs::write(
            directory.join("oci-layout"),
            r#"{"imageLayoutVersion":"1.0.0"}"#,
        )?;
        let layout = Self {
            directory: directory.to_owned(),
        };
        layout.write_index(&[])?;
        Ok(layout)
    }

    /// Opens a layout that is there.
    #[must_use]
    pub fn open(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
        }
    }

    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The file of a blob.
    #[must_use]
    pub fn blob(&self, digest: &str) -> PathBuf {
        self.directory
            .join("blobs/sha256")
            .join(digest.trim_start_matches("sha256:"))
    }

    /// The JSON of a blob.
    ///
    /// # Errors
    /// When there is no such blob, or it is not JSON.
    pub fn json(&self, digest: &str) -> anyhow::Result<Value> {
        let path = self.blob(digest);
        let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(serde_json::from_slice(&text)?)
    }

    /// The descriptors of `index.json`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn manifests(&self) -> anyhow::Result<Vec<Value>> {
        let text = std::fs::read(self.directory.join("index.json"))?;
        let index: Value = serde_json::from_slice(&text)?;
        Ok(index["manifests"].as_array().cloned().unwrap_or_default())
    }

    /// The descriptor of the image called `reference`.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(&self, reference: &str) -> anyhow::Result<Value> {
        let found = self
            .manifests()?
            .into_iter()
            .find(|it| reference_of(it) == Some(reference));
        found.with_context(|| format!("no {reference} in {}", self.directory.display()))
    }

    /// Adds a layer out of the tar archive that `write` writes.
    ///
    /// # Errors
    /// When it cannot be written or packed.
    pub fn add_layer(
        &self,
        packing: Packing,
        write: impl FnOnce(&mut dyn Write) -> anyhow::Result<()>,
    ) -> anyhow::Result<Layer> {
        let temporary = self.directory.join(".layer");
        let mut tar = Hashing::new(Packer::new(packing, &temporary)?);
        write(&mut tar)?;
        let (packer, diff_id) = tar.finish();
        packer.finish()?;
        let digest = digest_of_file(&temporary)?;
        let size = temporary.metadata()?.len();
        std::fs::rename(&temporary, self.blob(&digest))?;
        Ok(Layer {
            packing,
            digest,
            size,
            diff_id,
        })
    }

    /// Adds an image of `layers`, with `config` as its `config` object and `architecture` as Go
    /// spells it, under the name `reference` (no name: reachable by an index only).
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add_image(
        &self,
        reference: Option<&str>,
        architecture: &str,
        dialect: Dialect,
        layers: &[Layer],
        config: &Value,
    ) -> anyhow::Result<Value> {
        let diff_ids: Vec<_> = layers.iter().map(|layer| &layer.diff_id).collect();
        let config = self.add_json(&json!({
            "architecture": architecture, "os": "linux", "created": "2024-01-02T03:04:05Z",
            "config": config, "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": layers.iter().map(|_| json!({"created_by": "tests"})).collect::<Vec<_>>(),
        }))?;
        let layers: Vec<_> = layers
            .iter()
            .map(|it| descriptor(layer_type(dialect, it.packing), &it.digest, it.size))
            .collect();
        let [manifest_type, config_type] = match dialect {
            Dialect::Oci => ["manifest.v1+json", "config.v1+json"]
                .map(|it| format!("application/vnd.oci.image.{it}")),
            Dialect::Docker => ["distribution.manifest.v2+json", "container.image.v1+json"]
                .map(|it| format!("application/vnd.docker.{it}")),
        };
        let manifest = self.add_json(&json!({
            "schemaVersion": 2, "mediaType": manifest_type,
            "config": descriptor(&config_type, &config.0, config.1), "layers": layers,
        }))?;
        let mut described = descriptor(&manifest_type, &manifest.0, manifest.1);
        described["platform"] = json!({"architecture": architecture, "os": "linux"});
        self.publish(reference, described)
    }

    /// Adds an index over `images`, descriptors that [`Layout::add_image`] gave.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add_index(&self, reference: &str, images: &[Value]) -> anyhow::Result<Value> {
        let kind = "application/vnd.oci.image.index.v1+json";
        let (digest, size) =
            self.add_json(&json!({"schemaVersion": 2, "mediaType": kind, "manifests": images}))?;
        self.publish(Some(reference), descriptor(kind, &digest, size))
    }

    /// Lists `described` in `index.json` as `reference`, if that is one.
    fn publish(&self, reference: Option<&str>, described: Value) -> anyhow::Result<Value> {
        if let Some(reference) = reference {
            let mut named = described.clone();
            named["annotations"] = json!({"org.opencontainers.image.ref.name": reference});
            let mut manifests = self.manifests()?;
            manifests.push(named);
            self.write_index(&manifests)?;
        }
        Ok(described)
    }

    fn write_index(&self, manifests: &[Value]) -> anyhow::Result<()> {
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        Ok(std::fs::write(
            self.directory.join("index.json"),
            index.to_string(),
        )?)
    }

    /// Adds a JSON blob and gives its digest and size.
    fn add_json(&self, value: &Value) -> anyhow::Result<(String, u64)> {
        let text = value.to_string();
        let digest = format!("sha256:{}", hex(&Sha256::digest(&text)));
        std::fs::write(self.blob(&digest), &text)?;
        Ok((digest, text.len() as u64))
    }
}

/// The name that `index.json` gives an image.
#[must_use]
pub fn reference_of(described: &Value) -> Option<&str> {
    described["annotations"]["org.opencontainers.image.ref.name"].as_str()
}

fn descriptor(kind: &str, digest: &str, size: u64) -> Value {
    json!({"mediaType": kind, "digest": digest, "size": size})
}

fn layer_type(dialect: Dialect, packing: Packing) -> &'static str {
    match (dialect, packing) {
        (Dialect::Docker, _) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
        (Dialect::Oci, Packing::Plain) => "application/vnd.oci.image.layer.v1.tar",
        (Dialect::Oci, Packing::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
        (Dialect::Oci, Packing::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
    }
}

/// Writes the tar archive of a busybox root file system: the static busybox of the machine under
/// each of its names, root in `/etc/passwd`, and the usual empty directories.
///
/// # Errors
/// When the machine has no static busybox, or `out` fails.
pub fn busybox_tar(out: &mut dyn Write) -> anyhow::Result<()> {
    let program = on_path("busybox").context("no program busybox: install busybox-static")?;
    let names = crate::command::tool("busybox", &["--list"]);
    let mut tar = tar::Builder::new(out);
    for (directory, mode) in [
        ("bin", 0o755),
        ("dev", 0o755),
        ("etc", 0o755),
        ("proc", 0o755),
        ("root", 0o700),
        ("sys", 0o755),
        ("tmp", 0o1777),
        ("var", 0o755),
    ] {
        entry(&mut tar, &format!("{directory}/"), mode, b"")?;
    }
    entry(
        &mut tar,
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nbird:x:1000:1000::/tmp:/bin/sh\n",
    )?;
    entry(
        &mut tar,
        "etc/group",
        0o644,
        b"root:x:0:\nbird:x:1000:\nsong:x:1001:bird\n",
    )?;
    entry(&mut tar, "bin/busybox", 0o755, &std::fs::read(program)?)?;
    for name in names.lines().filter(|name| *name != "busybox") {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_mode(0o777);
        header.set_size(0);
        tar.append_link(&mut header, format!("bin/{name}"), "busybox")?;
    }
    Ok(tar.finish()?)
}

/// Appends a file, or a directory when `path` ends in a slash, owned by root.
///
/// # Errors
/// When the archive cannot be written.
pub fn entry<W: Write>(
    tar: &mut tar::Builder<W>,
    path: &str,
    mode: u32,
    content: &[u8],
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    let directory = path.ends_with('/');
    header.set_entry_type(if directory {
        tar::EntryType::Directory
    } else {
        tar::EntryType::Regular
    });
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, path, content)
}

/// The digest of a file.
///
/// # Errors
/// When it cannot be read.
pub fn digest_of_file(path: &Path) -> anyhow::Result<String> {
    let mut hashing = Hashing::new(io::sink());
    io::copy(&mut File::open(path)?, &mut hashing)?;
    Ok(hashing.finish().1)
}

/// Lower-case hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A writer that hashes what passes.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
}

impl<W: Write> Hashing<W> {
    fn new(inner: W) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
        }
    }

    fn finish(self) -> (W, String) {
        (self.inner, format!("sha256:{}", hex(&self.hash.finalize())))
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hash.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Packs what is written into a file.
enum Packer {
    Plain(File),
    Gzip(GzEncoder<File>),
    Zstd(std::process::Child),
}

impl Packer {
    fn new(packing: Packing, path: &Path) -> anyhow::Result<Self> {
        let file = File::create(path)?;
        Ok(match packing {
            Packing::Plain => Self::Plain(file),
            Packing::Gzip => Self::Gzip(GzEncoder::new(file, flate2::Compression::fast())),
            Packing::Zstd => Self::Zstd(
                std::process::Command::new("zstd")
                    .args(["-q", "-c"])
                    .stdin(std::process::Stdio::piped())
                    .stdout(file)
                    .spawn()
                    .context("start zstd")?,
            ),
        })
    }

    fn finish(self) -> anyhow::Result<()> {
        match self {
            Self::Plain(_) => {}
            Self::Gzip(encoder) => drop(encoder.finish()?),
            Self::Zstd(mut child) => {
                drop(child.stdin.take());
                anyhow::ensure!(child.wait()?.success(), "zstd failed");
            }
        }
        Ok(())
    }
}

impl Write for Packer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(file) => file.write(bytes),
            Self::Gzip(encoder) => encoder.write(bytes),
            Self::Zstd(child) => match child.stdin.as_mut() {
                Some(stdin) => stdin.write(bytes),
                None => Err(io::ErrorKind::BrokenPipe.into()),
            },
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
