//! A registry that misbehaves, one way at a time, with a small image behind it.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

use crate::image::Layout;

/// What the registry does wrong, or in an unusual way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malice {
    /// Nothing.
    None,
    /// A byte in the middle of every layer is another.
    WrongLayer,
    /// A manifest asked for by digest is another.
    WrongManifest,
    /// Layers are half as long as the manifest says; the length in the answer's head is true.
    ShortLayer,
    /// Blobs are answered with this status.
    Status(u16),
    /// The first answer with each blob breaks off in the middle; later ones, ranges too, are whole.
    BrokenOnce,
    /// Every answer with a blob breaks off in the middle.
    BrokenAlways,
    /// Layers come half, and then nothing more, with the connection kept open.
    Stalled,
    /// Nothing wrong: clients have to bring a token, which user and password buy.
    Token,
    /// The manifest is not JSON.
    NoJson,
}

/// A registry on 127.0.0.1 in the network namespace of the thread that started it.
#[derive(Debug)]
pub struct Evil {
    /// The port it listens on.
    pub port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    malice: Malice,
    layout: Layout,
    port: u16,
    ended: AtomicBool,
    /// Every request line so far.
    requests: Mutex<Vec<String>>,
    /// Digests of the blobs whose first answer was broken off.
    broken: Mutex<BTreeSet<String>>,
}

/// A request: what of it matters.
struct Request {
    /// Asked by HEAD: an answer without a body.
    head_only: bool,
    path: String,
    authorization: String,
    range: Option<usize>,
}

const TOKEN: &str = "let-me-in";

impl Evil {
    /// Starts it over the images of [`crate::registry::images`].
    ///
    /// # Panics
    /// When there is no port, or no image.
    #[must_use]
    pub fn start(malice: Malice) -> Self {
        let images = match crate::registry::images() {
            Ok(images) => images,
            Err(error) => panic!("make the images of the tests: {error:#}"),
        };
        let (listener, port) = match listen() {
            Ok(found) => found,
            Err(error) => panic!("listen on 127.0.0.1: {error}"),
        };
        let shared = Arc::new(Shared {
            malice,
            layout: Layout::open(&images.join("layout")),
            port,
            ended: AtomicBool::new(false),
            requests: Mutex::default(),
            broken: Mutex::default(),
        });
        let server = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if server.ended.load(Ordering::Relaxed) {
                    return;
                }
                let server = server.clone();
                // A client that goes away in the middle is what some tests are about.
                std::thread::spawn(move || drop(server.converse(stream)));
            }
        });
        Self { port, shared }
    }

    /// The reference of an image here.
    #[must_use]
    pub fn reference(&self, name: &str) -> String {
        format!("localhost:{}/{name}", self.port)
    }

    /// Request lines so far that contain `part`.
    #[must_use]
    pub fn requests(&self, part: &str) -> usize {
        let requests = self.shared.requests.lock();
        requests.map_or(0, |all| {
            all.iter().filter(|line| line.contains(part)).count()
        })
    }
}

impl Drop for Evil {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts, so that it sees the end.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

fn listen() -> std::io::Result<(TcpListener, u16)> {
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

impl Shared {
    /// Answers the requests of one connection until the client closes it.
    fn converse(&self, stream: TcpStream) -> anyhow::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?);
        while let Some(request) = read_request(&mut lines)? {
            if let Ok(mut requests) = self.requests.lock() {
                requests.push(request.path.clone());
            }
            if !self.answer(&request, &stream)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Answers one request; `false` when the connection is to be closed.
    fn answer(&self, request: &Request, out: &TcpStream) -> anyhow::Result<bool> {
        let path = request.path.as_str();
        if path.starts_with("/token") {
            return self.sell_token(request, out);
        }
        if self.malice == Malice::Token && request.authorization != format!("Bearer {TOKEN}") {
            let challenge = format!(
                "WWW-Authenticate: Bearer realm=\"http://127.0.0.1:{}/token\",\
                 service=\"tests\",scope=\"repository:busybox:pull\"\r\n",
                self.port
            );
            return send(
                out,
                401,
                &challenge,
                b"{\"errors\":[{\"code\":\"UNAUTHORIZED\"}]}",
            );
        }
        let parts: Vec<_> = path.trim_start_matches("/v2/").rsplitn(3, '/').collect();
        match parts[..] {
            [reference, "manifests", name] => self.send_manifest(name, reference, request, out),
            [digest, "blobs", _] => self.send_blob(digest, request.range, out),
            _ => send(out, 200, "", b"{}"),
        }
    }

    fn sell_token(&self, request: &Request, out: &TcpStream) -> anyhow::Result<bool> {
        // base64 of "heron:reed and water", see the registry module.
        if self.malice == Malice::Token
            && request.authorization != "Basic aGVyb246cmVlZCBhbmQgd2F0ZXI="
        {
            return send(out, 401, "", b"{\"errors\":[{\"code\":\"UNAUTHORIZED\"}]}");
        }
        let answer = format!("{{\"token\":\"{TOKEN}\",\"expires_in\":300}}");
        send(
            out,
            200,
            "Content-Type: application/json\r\n",
            answer.as_bytes(),
        )
    }

    fn send_manifest(
        &self,
        name: &str,
        reference: &str,
        request: &Request,
        out: &TcpStream,
    ) -> anyhow::Result<bool> {
        let by_digest = reference.contains(':');
        let (digest, kind) = if by_digest {
            (
                reference.to_owned(),
                "application/vnd.oci.image.manifest.v1+json".to_owned(),
            )
        } else {
            match self.layout.find(&format!("{name}:{reference}")) {
                Ok(image) => (text(&image["digest"]), text(&image["mediaType"])),
                Err(_) => {
                    let body =
                        b"{\"errors\":[{\"code\":\"MANIFEST_UNKNOWN\",\"message\":\"unknown\"}]}";
                    return send(out, 404, "", body);
                }
            }
        };
        let mut content = std::fs::read(self.layout.blob(&digest))?;
        match self.malice {
            Malice::NoJson => content = b"<html>please sign in</html>".to_vec(),
            Malice::WrongManifest if by_digest => content.push(b'\n'),
            _ => {}
        }
        let head = match self.malice {
            Malice::NoJson => format!("Content-Type: {kind}\r\n"),
            _ => format!("Content-Type: {kind}\r\nDocker-Content-Digest: {digest}\r\n"),
        };
        if request.head_only {
            let mut out = out;
            out.write_all(head_of(200, &head, content.len()).as_bytes())?;
            return Ok(true);
        }
        send(out, 200, &head, &content)
    }

    fn send_blob(
        &self,
        digest: &str,
        from: Option<usize>,
        mut out: &TcpStream,
    ) -> anyhow::Result<bool> {
        if let Malice::Status(status) = self.malice {
            return send(out, status, "", b"{}");
        }
        let Ok(mut content) = std::fs::read(self.layout.blob(digest)) else {
            return send(out, 404, "", b"{\"errors\":[{\"code\":\"BLOB_UNKNOWN\"}]}");
        };
        let (is_layer, half) = (content.first() != Some(&b'{'), content.len() / 2);
        match self.malice {
            Malice::WrongLayer if is_layer => content[half] ^= 0x55,
            Malice::ShortLayer if is_layer => content.truncate(half),
            _ => {}
        }
        let (start, status) = from.map_or((0, 200), |start| (start.min(content.len()), 206));
        let total = content.len();
        let content = &content[start..];
        let first = self
            .broken
            .lock()
            .is_ok_and(|mut broken| broken.insert(digest.to_owned()));
        let cut = match self.malice {
            Malice::BrokenOnce => first && is_layer,
            Malice::BrokenAlways | Malice::Stalled => is_layer,
            _ => false,
        };
        let head = match status {
            206 => format!("Content-Range: bytes {start}-{}/{total}\r\n", total - 1),
            _ => "Accept-Ranges: bytes\r\n".to_owned(),
        };
        if !cut {
            return send(out, status, &head, content);
        }
        out.write_all(head_of(status, &head, content.len()).as_bytes())?;
        out.write_all(&content[..content.len() / 2])?;
        while self.malice == Malice::Stalled && !self.ended.load(Ordering::Relaxed) {
            out.set_read_timeout(Some(Duration::from_millis(200)))?;
            if matches!(out.read(&mut [0]), Ok(0)) {
                break;
            }
        }
        Ok(false)
    }
}

fn read_request(lines: &mut BufReader<TcpStream>) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if lines.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let head_only = line.starts_with("HEAD ");
    let mut request = Request {
        head_only,
        path,
        authorization: String::new(),
        range: None,
    };
    loop {
        line.clear();
        if lines.read_line(&mut line)? == 0 || line.trim().is_empty() {
            return Ok(Some(request));
        }
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        match name.to_ascii_lowercase().as_str() {
            "authorization" => request.authorization = value.trim().to_owned(),
            "range" => {
                let start = value
                    .trim()
                    .trim_start_matches("bytes=")
                    .trim_end_matches('-');
                request.range = start.parse().ok();
            }
            _ => {}
        }
    }
}

fn send(mut out: &TcpStream, status: u16, head: &str, body: &[u8]) -> anyhow::Result<bool> {
    out.write_all(head_of(status, head, body.len()).as_bytes())?;
    out.write_all(body)?;
    Ok(true)
}

fn head_of(status: u16, head: &str, length: usize) -> String {
    format!("HTTP/1.1 {status} Answer\r\nContent-Length: {length}\r\n{head}\r\n")
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
