//! Users, groups and capabilities: nobody becomes more than the configuration says.

use std::fs::File;
use std::os::unix::fs::symlink;
use std::process::Command;

use serde_json::json;
use stack_tests::bundle::Bundle;
use stack_tests::command;
use stack_tests::needs::{Need, Test};
use stack_tests::runtime::Runtime;
use stack_tests::tests;

use crate::fixture::{Variants, run};

pub(crate) fn tests() -> Vec<Test> {
    tests!(
        "identity",
        &[Need::Root, Need::Program("setpriv")],
        [
            cve_2016_3697_a_numeric_user_is_no_name,
            cve_2022_24769_nothing_is_inheritable,
            cve_2026_30892_every_form_of_a_user,
            cve_2024_40635_ids_do_not_wrap,
            cve_2022_2989_groups_are_those_of_the_configuration,
            cve_2026_57231_and_2020_14370_variables_do_not_leak,
            cve_2026_47262_a_passwd_file_without_end,
        ]
    )
}

/// runc looked a numeric user up as a name first: an image whose passwd file has a user called "1000" with id 0 made
/// the container's process root.
fn cve_2016_3697_a_numeric_user_is_no_name() {
    let bundle = Bundle::sleeper().with("/process/user", json!({"uid": 1000, "gid": 1000}));
    let passwd = "1000:x:0:0:1000:/root:/bin/sh\nroot:x:0:0::/root:/bin/sh\n";
    std::fs::write(bundle.rootfs().join("etc/passwd"), passwd).unwrap();
    std::fs::write(bundle.rootfs().join("etc/group"), "1000:x:0:\n").unwrap();
    let runtime = Runtime::new();
    let id = runtime.started("named", &bundle);
    let status = |user: &str| {
        let line = format!("exec {user} {id} sh -c 'grep -E ^[UG]id: /proc/self/status'");
        runtime.run(&line).ok().replace('\t', " ")
    };
    let expected = "Uid: 1000 1000 1000 1000\nGid: 1000 1000 1000 1000";
    assert_eq!(status(""), expected);
    assert_eq!(status("--user 1000"), expected);
    assert_eq!(status("--user 1000:1000"), expected);
}

/// Engines and runtimes filled the inheritable set, so that a program with inheritable file capabilities gave them to
/// processes of any user.
fn cve_2022_24769_nothing_is_inheritable() {
    let sets = "grep -E '^Cap(Inh|Amb)' /proc/self/status";
    let none = "CapInh:\t0000000000000000\nCapAmb:\t0000000000000000";
    for uid in [0, 1000] {
        let bundle = Bundle::sleeper().with("/process/user", json!({"uid": uid, "gid": uid}));
        let runtime = Runtime::new();
        let id = runtime.started("inherits", &bundle);
        for flags in [
            "",
            "--cap CAP_NET_ADMIN",
            "--cap CAP_CHOWN --user 0",
            "--user 7",
        ] {
            let outcome = runtime.run(&format!("exec {flags} {id} sh -c \"{sets}\""));
            assert_eq!(outcome.ok(), none, "uid {uid}, exec {flags}");
        }
        let process = runtime.directory().join("process.json");
        let mut given = bundle.config["process"].clone();
        given["args"] = json!(["sh", "-c", sets]);
        given["capabilities"]["inheritable"] = json!(null);
        std::fs::write(&process, given.to_string()).unwrap();
        let line = format!("exec --process {} {id}", process.display());
        assert_eq!(runtime.run(&line).ok(), none);
        let bundle = bundle.with("/process/args", json!(["sh", "-c", sets]));
        assert_eq!(run(&bundle).ok(), none, "uid {uid}, run");
    }
    // What the configuration asks for in so many words it gets: the test can tell the difference.
    let asked = Bundle::new(&["sh", "-c", sets])
        .with("/process/capabilities/inheritable", json!(["CAP_CHOWN"]));
    run(&asked).out("CapInh:\t0000000000000001");
}

/// crun took "1" of `exec --user 1` for the id 0 when nothing followed it: a number that was not read to its end.
fn cve_2026_30892_every_form_of_a_user() {
    let runtime = Runtime::new();
    let sleeper = Bundle::sleeper();
    let id = runtime.started("forms", &sleeper);
    let exec = |user: &str| {
        runtime.run(&format!(
            "exec --user '{user}' {id} sh -c 'echo $(id -u):$(id -g)'"
        ))
    };
    for (user, expected) in [
        ("0", "0:0"),
        ("1", "1:0"),
        ("1:2", "1:2"),
        ("0:7", "0:7"),
        ("007:010", "7:10"),
        ("65534:65533", "65534:65533"),
        ("4294967294:4294967294", "4294967294:4294967294"),
    ] {
        assert_eq!(exec(user).ok(), expected, "{user}");
    }
    for user in [
        "-1",
        "1:-1",
        "1:",
        ":1",
        ":",
        "1:2:3",
        "root",
        "1x",
        "1:x",
        "0x0",
        "1 ",
        " 1",
        "1.0",
        "1e3",
        "4294967295",
        "1:4294967295",
        "4294967296",
        "1:4294967296",
        "18446744073709551616",
        "2147483648x",
    ] {
        exec(user).refused(255, "");
    }
    runtime
        .run(&format!("exec --additional-gids 4294967296 {id} id"))
        .refused(255, "");
    runtime
        .run(&format!("exec --additional-gids 4294967295 {id} id"))
        .refused(255, "");
}

/// containerd let ids above 2^31 wrap around, or look them up as names: the process was root.
fn cve_2024_40635_ids_do_not_wrap() {
    let mut bundle = Variants::of(Bundle::new(&["sh", "-c", "echo $(id -u):$(id -g)"]));
    let passwd = bundle.bundle.rootfs().join("etc/passwd");
    for id in [
        json!(4_294_967_296_u64),
        json!(u64::MAX),
        json!(-1),
        json!(4_294_967_295_u64),
        json!("0"),
        json!(0.5),
    ] {
        std::fs::write(&passwd, format!("{id}:x:0:0::/:/bin/sh\n")).unwrap();
        for (field, value) in [
            ("/process/user/uid", id.clone()),
            ("/process/user/gid", id.clone()),
            ("/process/user/additionalGids", json!([id])),
        ] {
            run(bundle.with(&[(field, value)])).refused(1, "");
        }
    }
    let largest = json!({"uid": 2_147_483_648_u32, "gid": 4_294_967_294_u32});
    let bundle = bundle.with(&[("/process/user", largest)]);
    assert_eq!(run(bundle).ok(), "2147483648:4294967294");
}

/// Engines left the caller's supplementary groups on the process, or forgot the user's: a file that a group must not
/// read was readable.
fn cve_2022_2989_groups_are_those_of_the_configuration() {
    let groups = "grep ^Groups: /proc/self/status";
    let runtime = Runtime::new();
    for (listed, expected) in [(json!([]), "Groups:"), (json!([5, 6]), "Groups:\t5 6")] {
        let user = json!({"uid": 1000, "gid": 1000, "additionalGids": listed});
        let bundle = Bundle::new(&["sh", "-c", groups]).with("/process/user", user);
        let id = runtime.id("groups");
        let line = format!("run --bundle {} {id}", bundle.path().display());
        let plain = runtime.command(&line);
        let mut grouped = Command::new("setpriv");
        grouped
            .args(["--groups", "0,4242"])
            .arg(plain.get_program())
            .args(plain.get_args());
        let outcome = command::run(&mut grouped);
        assert_eq!(outcome.ok().trim_end(), expected);
    }
}

/// An engine took a variable without "=" for a request to copy the host's, and shared lists of variables let one
/// container's secrets appear in another.
fn cve_2026_57231_and_2020_14370_variables_do_not_leak() {
    let runtime = Runtime::new();
    let with_secret = |bundle: &Bundle, before: &str| {
        let id = runtime.id("env");
        let line = format!("{before} --bundle {} {id}", bundle.path().display());
        command::run(runtime.command(&line).env("SECRET_OF_THE_HOST", "leaked"))
    };
    let mut bundle = Variants::of(Bundle::new(&["env"]));
    for entry in ["HOME", "*", "SECRET*", "SECRET_OF_THE_HOST", "=x", ""] {
        let bundle = bundle.with(&[("/process/env", json!(["PATH=/bin", entry]))]);
        let outcome = with_secret(bundle, "run");
        outcome.refused(1, "");
        outcome.no_out("leaked");
    }
    let hook = json!([{"path": "/bin/sh", "args": ["sh", "-c", "env > /hook"]}]);
    let bundle = Bundle::new(&["sh", "-c", "env; cat /hook"])
        .with("/hooks", json!({"startContainer": hook}));
    with_secret(&bundle, "run")
        .out("PATH=/bin")
        .no_out("SECRET")
        .no_out("leaked");
}

/// The container's own passwd file is looked at for the home directory: one without end, or one that never answers,
/// must not take the runtime's memory or time.
fn cve_2026_47262_a_passwd_file_without_end() {
    let bundle =
        Bundle::new(&["sh", "-c", "echo $HOME"]).with("/process/env", json!(["PATH=/bin"]));
    let passwd = bundle.rootfs().join("etc/passwd");
    File::create(&passwd).unwrap().set_len(8 << 30).unwrap();
    assert_eq!(run(&bundle).ok(), "/");
    std::fs::remove_file(&passwd).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o644);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &passwd,
        rustix::fs::FileType::Fifo,
        mode,
        0,
    )
    .unwrap();
    assert_eq!(run(&bundle).ok(), "/");
    for target in ["/dev/zero", "/proc/kmsg", "passwd"] {
        std::fs::remove_file(&passwd).unwrap();
        symlink(target, &passwd).unwrap();
        assert_eq!(run(&bundle).ok(), "/", "{target}");
    }
}
