//! A proxy that cuts connections off: what a bad network does to an upload.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Passes connections on to a server of this machine, and cuts off those that send too much.
#[derive(Debug)]
pub struct Cutter {
    /// The port of 127.0.0.1 it listens on.
    pub port: u16,
    cuts: Arc<AtomicUsize>,
}

impl Cutter {
    /// Starts it in the calling thread's network namespace: each of the first `times` connections
    /// that send more than `bytes` ends there.
    ///
    /// # Panics
    /// When no port can be had.
    #[must_use]
    pub fn start(server: u16, bytes: usize, times: usize) -> Self {
        let listener = match TcpListener::bind((Ipv4Addr::LOCALHOST, 0)) {
            Ok(listener) => listener,
            Err(error) => panic!("listen: {error}"),
        };
        let port = listener.local_addr().map_or(0, |address| address.port());
        let cuts = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&cuts);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, server)) else {
                    return;
                };
                let counter = Arc::clone(&counter);
                std::thread::spawn(move || relay(client, server, bytes, times, &counter));
            }
        });
        Self { port, cuts }
    }

    /// How many connections were cut off.
    #[must_use]
    pub fn cuts(&self) -> usize {
        self.cuts.load(Ordering::SeqCst)
    }
}

fn relay(client: TcpStream, server: TcpStream, bytes: usize, times: usize, cuts: &AtomicUsize) {
    let (Ok(mut from_server), Ok(mut to_client)) = (server.try_clone(), client.try_clone()) else {
        return;
    };
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from_server, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Both);
    });
    let (mut client, mut server) = (client, server);
    let mut buffer = [0; 16 << 10];
    let mut sent = 0;
    while let Ok(count @ 1..) = client.read(&mut buffer) {
        if server.write_all(&buffer[..count]).is_err() {
            break;
        }
        sent += count;
        if sent > bytes
            && cuts
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| {
                    (count < times).then_some(count + 1)
                })
                .is_ok()
        {
            break;
        }
    }
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
}
