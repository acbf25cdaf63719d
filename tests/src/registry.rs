//! A real registry: Debian's docker-registry on a free port of 127.0.0.1, serving images that were
//! made once and are kept in a cache directory.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::command::shell;
use crate::http::{self, Body};
use crate::image::{Dialect, Layout, Packing, busybox_tar, entry, reference_of};
use crate::needs::Need;
use crate::wait;

/// What a test with a registry needs.
pub const NEEDS: &[Need] = &[Need::Root, Need::Host, Need::Program("docker-registry")];

/// Changed whenever the images are, so that an older cache is not taken for the current one.
const EDITION: &str = "images-2";

/// The user that registries with authentication know.
pub const USER: &str = "heron";
/// The user's password.
pub const PASSWORD: &str = "reed and water";

/// How a registry lets clients in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Door {
    /// TLS with a certificate of the registry's own authority.
    pub tls: bool,
    /// Basic authentication of [`USER`] by [`PASSWORD`].
    pub password: bool,
    /// This port; a free one when it is `None`.
    pub port: Option<u16>,
    /// Empty, and open to pushes, instead of the images of the tests.
    pub empty: bool,
}

/// A running registry; it ends when dropped.
#[derive(Debug)]
pub struct Registry {
    server: Child,
    directory: tempfile::TempDir,
    /// The port of 127.0.0.1 it listens on.
    pub port: u16,
}

impl Registry {
    /// Starts a registry without TLS or authentication, in the calling thread's network namespace.
    #[must_use]
    pub fn start() -> Self {
        Self::behind(Door::default())
    }

    /// Starts an empty registry that can be pushed to.
    #[must_use]
    pub fn empty() -> Self {
        Self::behind(Door {
            empty: true,
            ..Door::default()
        })
    }

    /// Starts a registry behind `door`.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn behind(door: Door) -> Self {
        if door.empty {
            return match Self::serve(None, door, true) {
                Ok(registry) => registry,
                Err(error) => panic!("start docker-registry: {error:#}"),
            };
        }
        let images = match images() {
            Ok(images) => images,
            Err(error) => panic!("make the images of the tests: {error:#}"),
        };
        match Self::serve(Some(&images.join("registry")), door, false) {
            Ok(registry) => registry,
            Err(error) => panic!("start docker-registry: {error:#}"),
        }
    }

    /// The reference of an image of this registry.
    #[must_use]
    pub fn reference(&self, name: &str) -> String {
        format!("localhost:{}/{name}", self.port)
    }

    /// A directory with the certificate of the authority that signed the registry's.
    #[must_use]
    pub fn certificates(&self) -> PathBuf {
        self.directory.path().join("certs")
    }

    fn serve(storage: Option<&Path>, door: Door, writable: bool) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("qregistry").tempdir()?;
        let place = directory.path();
        let own = place.join("storage");
        let storage = storage.unwrap_or(&own);
        let port = door.port.unwrap_or_else(http::free_port);
        let mut config = json!({
            "version": "0.1",
            "log": {"level": "error", "accesslog": {"disabled": true}},
            "storage": {
                "filesystem": {"rootdirectory": storage},
                "maintenance": {"uploadpurging": {"enabled": false}, "readonly": {"enabled": !writable}},
            },
            "http": {"addr": format!("127.0.0.1:{port}")},
        });
        if door.tls {
            make_certificates(place)?;
            config["http"]["tls"] = json!({
                "certificate": place.join("server.crt"), "key": place.join("server.key"),
            });
        }
        if door.password {
            let users = shell(&format!("htpasswd -Bbn {USER} '{PASSWORD}'"));
            std::fs::write(place.join("users"), users)?;
            config["auth"] = json!({"htpasswd": {"realm": "tests", "path": place.join("users")}});
        }
        // JSON is YAML.
        std::fs::write(place.join("config.yml"), config.to_string())?;
        let log = File::create(place.join("log"))?;
        let server = Command::new("docker-registry")
            .arg("serve")
            .arg(place.join("config.yml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut registry = Self {
            server,
            directory,
            port,
        };
        registry.wait_until_up()?;
        Ok(registry)
    }

    fn wait_until_up(&mut self) -> anyhow::Result<()> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let up = wait::within(wait::patience(), || {
            let ended = self.server.try_wait().is_ok_and(|status| status.is_some());
            let answers = std::net::TcpStream::connect(address).is_ok();
            (ended || answers).then_some(answers)
        });
        let log = std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        ensure!(up == Some(true), "it does not answer on {address}:\n{log}");
        Ok(())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Makes an authority (`certs/ca.crt`) and a certificate for 127.0.0.1 and localhost signed by it.
fn make_certificates(directory: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory.join("certs"))?;
    let at = directory.display();
    std::fs::write(
        directory.join("names"),
        "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n",
    )?;
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    shell(&format!(
        "openssl req -x509 {key} -days 2 -subj /CN=tests -keyout {at}/ca.key -out {at}/certs/ca.crt"
    ));
    shell(&format!(
        "openssl req {key} -subj /CN=localhost -keyout {at}/server.key -out {at}/server.csr"
    ));
    shell(&format!(
        "openssl x509 -req -days 2 -in {at}/server.csr -CA {at}/certs/ca.crt -CAkey {at}/ca.key \
         -CAcreateserial -extfile {at}/names -out {at}/server.crt"
    ));
    Ok(())
}

/// The directory with the images of the tests, made now unless an earlier run did: `layout`, an
/// OCI image layout, and `registry`, the same images in the storage of a docker-registry.
///
/// # Errors
/// When a program that is needed fails, or the disk is full.
pub fn images() -> anyhow::Result<PathBuf> {
    let cache = std::env::var_os("QSTACK_CACHE").unwrap_or("/var/cache/qstack-tests".into());
    let cache = PathBuf::from(cache);
    let ready = cache.join(EDITION);
    if ready.is_dir() {
        return Ok(ready);
    }
    std::fs::create_dir_all(&cache)?;
    let lock = File::create(cache.join("lock"))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
    if ready.is_dir() {
        return Ok(ready);
    }
    let making = tempfile::tempdir_in(&cache)?;
    let layout = Layout::create(&making.path().join("layout"))?;
    add_busybox(&layout)?;
    add_debian(&layout, making.path())?;
    let storage = making.path().join("registry");
    let registry = Registry::serve(Some(&storage), Door::default(), true)?;
    for image in layout.manifests()? {
        let reference = reference_of(&image).context("an image without a name")?;
        let (name, tag) = reference
            .split_once(':')
            .context("an image without a tag")?;
        push(&layout, registry.port, name, tag, &image)?;
    }
    drop(registry);
    std::fs::rename(making.keep(), &ready)?;
    Ok(ready)
}

/// Adds the small images: each packing, both dialects, several layers, and two architectures.
fn add_busybox(layout: &Layout) -> anyhow::Result<()> {
    let config = json!({"Cmd": ["sh"], "Env": ["PATH=/bin"], "Labels": {"of": "tests"}});
    let add = |tag: &str, architecture: &str, dialect, layers: &[_]| {
        layout.add_image(Some(tag), architecture, dialect, layers, &config)
    };
    let base = layout.add_layer(Packing::Gzip, busybox_tar)?;
    let plain = layout.add_layer(Packing::Plain, busybox_tar)?;
    let zstd = layout.add_layer(Packing::Zstd, busybox_tar)?;
    let one = std::slice::from_ref(&base);
    let amd64 = add("busybox:latest", "amd64", Dialect::Oci, one)?;
    add("busybox:docker", "amd64", Dialect::Docker, one)?;
    add("busybox:plain", "amd64", Dialect::Oci, &[plain])?;
    add("busybox:zstd", "amd64", Dialect::Oci, &[zstd])?;
    let more = layout.add_layer(Packing::Gzip, |out| {
        let mut tar = tar::Builder::new(out);
        entry(&mut tar, "data/", 0o755, b"")?;
        entry(&mut tar, "data/kept", 0o644, b"kept\n")?;
        entry(&mut tar, "data/removed", 0o644, b"removed\n")?;
        entry(&mut tar, "hidden/", 0o755, b"")?;
        entry(&mut tar, "hidden/below", 0o644, b"below\n")?;
        Ok(tar.finish()?)
    })?;
    let less = layout.add_layer(Packing::Gzip, |out| {
        let mut tar = tar::Builder::new(out);
        entry(&mut tar, "data/.wh.removed", 0o644, b"")?;
        entry(&mut tar, "data/added", 0o600, b"added\n")?;
        entry(&mut tar, "hidden/", 0o755, b"")?;
        entry(&mut tar, "hidden/.wh..wh..opq", 0o644, b"")?;
        entry(&mut tar, "hidden/above", 0o644, b"above\n")?;
        Ok(tar.finish()?)
    })?;
    add(
        "busybox:layers",
        "amd64",
        Dialect::Oci,
        &[base.clone(), more.clone(), less],
    )?;
    let mut arm64 = add("busybox:arm64", "arm64", Dialect::Oci, &[base, more])?;
    arm64["platform"]["variant"] = json!("v8");
    layout.add_index("busybox:multi", &[arm64, amd64])?;
    Ok(())
}

/// Adds what is made of Debian's packages: `debian:nginx` (with stress), `debian:gcc`, and stand-ins
/// for Docker Hub's Ubuntu.
fn add_debian(layout: &Layout, scratch: &Path) -> anyhow::Result<()> {
    let tree = scratch.join("debian");
    let at = tree.display();
    shell(&format!(
        "debootstrap --variant=minbase --include=nginx-light,stress bookworm {at} http://deb.debian.org/debian"
    ));
    let base = layout.add_layer(Packing::Gzip, |out| archive(&tree, None, out))?;
    // What the compiler adds is told by the time of change; that has whole seconds in tar's eyes.
    std::thread::sleep(std::time::Duration::from_secs(2));
    let before = shell("date +@%s");
    let install = "export DEBIAN_FRONTEND=noninteractive; apt-get update -qq && \
                   apt-get install -qq -y --no-install-recommends gcc libc6-dev";
    shell(&format!("chroot {at} sh -c '{install}'"));
    let compiler = layout.add_layer(Packing::Gzip, |out| {
        archive(&tree, Some(before.trim()), out)
    })?;
    let environment = json!(["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]);
    let nginx = json!({
        "Cmd": ["nginx", "-g", "daemon off;"], "StopSignal": "SIGQUIT", "Env": environment,
        "ExposedPorts": {"80/tcp": {}},
    });
    let shell = json!({"Cmd": ["bash"], "Env": environment});
    let one = std::slice::from_ref(&base);
    let add = |name: &str, architecture: &str, layers: &[_], config: &Value| {
        layout.add_image(Some(name), architecture, Dialect::Oci, layers, config)
    };
    add("debian:nginx", "amd64", one, &nginx)?;
    add("debian:gcc", "amd64", &[base.clone(), compiler], &shell)?;
    add("arm64v8/ubuntu:20.04", "amd64", one, &shell)?;
    let amd64 = layout.add_image(None, "amd64", Dialect::Oci, one, &shell)?;
    let small = layout.add_layer(Packing::Gzip, busybox_tar)?;
    let arm64 = layout.add_image(None, "arm64", Dialect::Oci, &[small], &shell)?;
    layout.add_index("library/ubuntu:20.04", &[amd64, arm64])?;
    Ok(std::fs::remove_dir_all(&tree)?)
}

/// Writes a root file system as a tar archive, without what an image does not need; with `since`, only
/// what was changed after it.
fn archive(tree: &Path, since: Option<&str>, out: &mut dyn std::io::Write) -> anyhow::Result<()> {
    let unneeded = [
        "./dev/*",
        "./etc/resolv.conf",
        "./var/cache/apt/*",
        "./var/lib/apt/lists/*",
        "./usr/share/doc/*",
        "./usr/share/locale/*",
        "./usr/share/man/*",
        "./usr/share/perl/*",
    ];
    let mut tar = Command::new("tar");
    tar.arg("--numeric-owner");
    tar.args(unneeded.map(|pattern| format!("--exclude={pattern}")));
    if let Some(since) = since {
        tar.arg("--newer").arg(since);
    }
    let mut tar = tar
        .arg("-C")
        .arg(tree)
        .args(["-c", "."])
        .stdout(Stdio::piped())
        .spawn()?;
    if let Some(mut archive) = tar.stdout.take() {
        std::io::copy(&mut archive, out)?;
    }
    ensure!(tar.wait()?.success(), "tar failed");
    Ok(())
}

/// Pushes an image or index, and all it names, by the distribution specification's monolithic
/// uploads.
fn push(layout: &Layout, port: u16, name: &str, tag: &str, image: &Value) -> anyhow::Result<()> {
    let digest = image["digest"]
        .as_str()
        .context("a descriptor without a digest")?;
    let content = layout.json(digest)?;
    for nested in content["manifests"].as_array().into_iter().flatten() {
        let digest = nested["digest"]
            .as_str()
            .context("a descriptor without a digest")?;
        push(layout, port, name, digest, nested)?;
    }
    let layers = content["layers"].as_array().into_iter().flatten();
    for blob in layers.chain(content.get("config")) {
        let digest = blob["digest"]
            .as_str()
            .context("a descriptor without a digest")?;
        push_blob(layout, port, name, digest)?;
    }
    let kind = image["mediaType"]
        .as_str()
        .context("a descriptor without a type")?;
    let mut file = File::open(layout.blob(digest))?;
    let body = Body(kind, file.metadata()?.len(), &mut file);
    let server = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let answer = http::request(
        server,
        "PUT",
        &format!("/v2/{name}/manifests/{tag}"),
        Some(body),
    )?;
    ensure!(answer.status == 201, "push {name}:{tag}: {answer:?}");
    Ok(())
}

fn push_blob(layout: &Layout, port: u16, name: &str, digest: &str) -> anyhow::Result<()> {
    let server = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let begun = http::request(server, "POST", &format!("/v2/{name}/blobs/uploads/"), None)?;
    let place = begun
        .header("Location")
        .with_context(|| format!("no upload: {begun:?}"))?;
    let path = place.split_once("/v2/").map_or(place, |(_, path)| path);
    let mut file = File::open(layout.blob(digest))?;
    let body = Body(
        "application/octet-stream",
        file.metadata()?.len(),
        &mut file,
    );
    let path = format!("/v2/{path}&digest={digest}");
    let answer = http::request(server, "PUT", &path, Some(body))?;
    ensure!(answer.status == 201, "push {digest}: {answer:?}");
    Ok(())
}
