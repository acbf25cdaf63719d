//! Input: pipes, half-closes, terminals and their size.

use super::session::{Session, Setup};

#[test]
fn a_half_close_ends_stdin() {
    let session = Session::created(Setup::new("cat; echo end").with(&["--stdin"]));
    let client = session.attach();
    session.go();
    let data: Vec<u8> = (0..300_000_u32)
        .map(|n| b'a' + n.to_le_bytes()[0] % 26)
        .collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for packet in data.chunks(32 * 1024) {
                client.send(packet);
            }
            client.close_input();
        });
        let (out, _) = client.all();
        assert_eq!(out, [&data[..], b"end\n"].concat());
    });
    assert_eq!(session.exit_code(), 0);
}

#[test]
fn a_client_that_leaves_early_has_said_what_it_said() {
    let session = Session::created(Setup::new("sleep 0.3; wc -c").with(&["--stdin"]));
    let client = session.attach();
    session.go();
    for _ in 0..10 {
        client.send(&[b'x'; 20_000]);
    }
    drop(client);
    assert_eq!(session.exit_code(), 0);
    assert_eq!(session.logged(), "stdout:200000\n");
}

#[test]
fn stdin_can_outlive_its_client() {
    let words = ["--stdin", "--leave-stdin-open"];
    let session = Session::created(Setup::new("read a; read b; echo $a-$b").with(&words));
    session.go();
    for word in [&b"one\n"[..], b"two\n"] {
        let client = session.attach();
        client.send(word);
        client.close_input();
    }
    assert_eq!(session.exit_code(), 0);
    assert_eq!(session.logged(), "stdout:one-two\n");
}

#[test]
fn without_stdin_there_is_nothing_to_read() {
    let session = Session::created(Setup::new("cat; echo done"));
    let client = session.attach();
    client.send(b"ignored");
    session.go();
    assert_eq!(client.all().0, b"done\n");
    assert_eq!(session.exit_code(), 0);
}

#[test]
fn terminals_and_their_size() {
    let script = "stty size; read line; echo got $line; stty size; exit 5";
    for long in [false, true] {
        let mut setup = Setup::new(script).with(&["--terminal", "--stdin"]);
        if long {
            setup = setup.long_path();
        }
        let session = Session::created(setup);
        std::fs::write(session.path("ctl"), "1 33 77\n").unwrap();
        let client = session.attach();
        // The monitor must have handled the size before the script asks.
        std::thread::sleep(std::time::Duration::from_millis(100));
        session.go();
        assert_eq!(client.packet(), b"\x0233 77\r\n");
        std::fs::write(session.path("winsz"), "44 88\n").unwrap();
        std::thread::sleep(std::time::Duration::from_millis(100));
        client.send(b"word\n");
        let (out, err) = client.all();
        let out = String::from_utf8(out).unwrap();
        assert!(
            out.contains("got word\r\n") && out.ends_with("44 88\r\n"),
            "{out}"
        );
        assert!(err.is_empty());
        assert_eq!(session.exit_code(), 5);
    }
}
