//! `docs/containerd.md`, followed to the letter.

use std::path::Path;
use std::process::Command;

use stack_tests::command::{run, tool};
use stack_tests::executable;
use stack_tests::peers::Containerd;
use stack_tests::programs::built;

use super::{ok, remove, wait_for_end};

const PAGE: &str = include_str!("../../../../docs/containerd.md");

/// A section's examples, without what indents them.
fn examples(section: &str) -> Vec<&'static str> {
    let mut parts = PAGE.split("\n## ");
    let Some(part) = parts.find(|part| part.lines().next() == Some(section)) else {
        panic!("docs/containerd.md has no section {section}");
    };
    part.lines()
        .filter_map(|line| line.strip_prefix("    "))
        .collect()
}

/// A line of the page with the places and names of a test.
fn here(containerd: &Containerd, line: &str) -> String {
    let place = containerd.directory().display().to_string();
    let programs = built("qrun").parent().unwrap().display().to_string();
    let replaced = [
        ("/usr/local/bin/logger", format!("{place}/logger")),
        ("/usr/local/bin", programs),
        ("/var/log", place.clone()),
        ("qrun.toml", format!("{place}/qrun.toml")),
        ("qrun/default", format!("qrun/{}", containerd.namespace())),
        // An image says where its programs are.
        ("IMAGE", "--env PATH=/bin --rootfs ~".to_owned()),
    ];
    let mut line = line.to_owned();
    for (theirs, ours) in replaced {
        line = line.replace(theirs, &ours);
    }
    line
}

/// Runs what the page has of `ctr` and `qrun`, and gives what each line said.
fn follow(containerd: &Containerd, section: &str) -> Vec<String> {
    let mut said = Vec::new();
    for line in examples(section) {
        let line = here(containerd, line);
        if let Some(line) = line.strip_prefix("ctr ") {
            if line.starts_with("run -d") && said.iter().any(String::is_empty) {
                remove(containerd, "bird");
            }
            said.push(ok(containerd, line));
        } else if let Some(line) = line.strip_prefix("qrun ") {
            let mut list = Command::new(built("qrun"));
            said.push(run(list.args(line.split(' '))).ok().to_owned());
        }
    }
    said
}

pub(super) fn the_page_of_ctr_can_be_followed() {
    let containerd = Containerd::start();
    let [hello, started, processes, list, other] = &follow(&containerd, "ctr")[..] else {
        panic!("docs/containerd.md has other examples");
    };
    assert_eq!([hello, started, other], ["hello", "", "hello"]);
    assert!(processes.contains("sleep 1000"), "{processes}");
    assert!(list.contains("bird"), "{list}");
    remove(&containerd, "bird");
    wait_for_end(&containerd);
}

pub(super) fn the_page_of_options_and_logs_can_be_followed() {
    let containerd = Containerd::start();
    let place = containerd.directory();
    let options = examples("Options").join("\n");
    let (options, _) = options.split_once("\nctr ").unwrap();
    std::fs::write(place.join("qrun.toml"), here(&containerd, options)).unwrap();
    let logger = place.join("logger");
    let script = format!(
        "#!/bin/sh\necho \"$*\" > {}/tag\nexec 5>&-\ncat <&3",
        place.display()
    );
    executable::script(&logger, &script);
    assert_eq!(follow(&containerd, "Options"), ["hello"]);
    assert_eq!(
        follow(&containerd, "Output of detached containers"),
        ["", ""]
    );
    assert!(place.join("bird.log").exists());
    assert_eq!(
        std::fs::read_to_string(place.join("tag")).unwrap(),
        "--tag bird\n"
    );
    remove(&containerd, "bird");
    wait_for_end(&containerd);
}

pub(super) fn the_page_of_kubernetes_is_understood() {
    let version = tool("containerd", &["--version"]);
    let version = version.split_whitespace().nth(2).unwrap_or_default();
    let examples = examples("Kubernetes (CRI)").join("\n");
    let (older, newer) = examples.split_once("\nversion = 3").unwrap();
    let (text, option) = if version.starts_with("1.") {
        (
            older.to_owned(),
            "ConfigPath = \"/etc/containerd/qrun.toml\"",
        )
    } else {
        (format!("version = 3{newer}"), "SystemdCgroup = true")
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.toml");
    std::fs::write(&path, text).unwrap();
    let dumped = dump(&path);
    // The default runtime: without it there is no CRI.
    assert!(dumped.contains(".containerd.runtimes.runc]"), "{dumped}");
    let table = dumped.split_once(".containerd.runtimes.qrun").unwrap().1;
    for line in ["runtime_type = \"io.containerd.qrun.v2\"", option] {
        assert!(table.replace('\'', "\"").contains(line), "{line}: {dumped}");
    }
}

/// A configuration as containerd understands it.
fn dump(path: &Path) -> String {
    let mut command = Command::new("containerd");
    command.arg("--config").arg(path).args(["config", "dump"]);
    run(&mut command).ok().to_owned()
}
