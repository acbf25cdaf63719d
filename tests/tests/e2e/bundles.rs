//! Bundles by `qbundle spec`, `qbundle unpack`, `qrun spec` and `runc spec`, run by `qrun`.

use serde_json::Value;
use stack_tests::bundle::{Bundle, unpack_busybox};
use stack_tests::command::{Outcome, run, shell};
use stack_tests::image::{Dialect, Layout, Packing, busybox_tar, entry};
use stack_tests::needs::{Need, Test};
use stack_tests::programs::built;
use stack_tests::runtime::Runtime;
use stack_tests::tests;
use stack_tests::words;

pub(crate) fn tests() -> Vec<Test> {
    let mut all = tests!(
        "bundles",
        &[Need::Root],
        [
            a_bundle_of_qbundle_spec_runs,
            a_bundle_of_qbundle_unpack_runs,
            unpack_stays_inside,
            validate_names_what_is_wrong,
        ]
    );
    let runc = &[Need::Root, Need::Program("runc")];
    all.extend(tests!(
        "bundles",
        runc,
        [
            a_bundle_of_runc_spec_runs,
            qrun_spec_writes_what_runc_spec_writes,
        ]
    ));
    all
}

fn qbundle(line: &str) -> Outcome {
    run(std::process::Command::new(built("qbundle")).args(words::split(line)))
}

/// Goes through create, start, exec, kill and delete with the bundle in `directory`, whose process
/// is a shell that waits for orders.
fn goes_through_its_life(directory: &std::path::Path) {
    let path = directory.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["process"]["terminal"] = false.into();
    config["process"]["args"] = serde_json::json!(["sleep", "1000"]);
    std::fs::write(&path, config.to_string()).unwrap();
    let runtime = Runtime::new();
    let id = runtime.id("life");
    runtime.leave(&format!("create --bundle {} {id}", directory.display()));
    runtime.run(&format!("start {id}")).ok();
    assert_eq!(
        runtime.run(&format!("exec {id} echo inside")).ok(),
        "inside"
    );
    runtime.run(&format!("kill {id} TERM")).ok();
    // Init ignores what it has no handler for.
    assert_eq!(runtime.state(&id)["status"], "running");
    runtime.run(&format!("kill {id} 9")).ok();
    runtime.wait_for(&id, "stopped");
    runtime.run(&format!("delete {id}")).ok();
    runtime.assert_nothing_left();
}

/// A directory with a root file system, in which `command LINE` writes the configuration.
fn bundle_by(command: &str, line: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    unpack_busybox(&directory.path().join("rootfs")).unwrap();
    let mut command = std::process::Command::new(command);
    run(command.args(words::split(line)).current_dir(&directory)).ok();
    directory
}

fn a_bundle_of_qbundle_spec_runs() {
    goes_through_its_life(bundle_by(&built("qbundle").display().to_string(), "spec").path());
}

fn a_bundle_of_runc_spec_runs() {
    goes_through_its_life(bundle_by("runc", "spec").path());
}

fn qrun_spec_writes_what_runc_spec_writes() {
    let config = |directory: &tempfile::TempDir| -> Value {
        let text = std::fs::read(directory.path().join("config.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    };
    let ours = config(&bundle_by(&built("qrun").display().to_string(), "spec"));
    let mut theirs = config(&bundle_by("runc", "spec"));
    // Older releases of runc ask for ambient capabilities, too.
    theirs["process"]["capabilities"]
        .as_object_mut()
        .unwrap()
        .remove("ambient");
    for part in ["process", "root", "hostname", "mounts"] {
        assert_eq!(ours[part], theirs[part], "{part}");
    }
    assert_eq!(ours["linux"]["namespaces"], theirs["linux"]["namespaces"]);
    let again = bundle_by(&built("qrun").display().to_string(), "spec");
    let mut command = std::process::Command::new(built("qrun"));
    run(command.arg("spec").current_dir(&again))
        .code(1)
        .err("config.json");
}

fn a_bundle_of_qbundle_unpack_runs() {
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout::create(&directory.path().join("image")).unwrap();
    let base = layout.add_layer(Packing::Gzip, busybox_tar).unwrap();
    let top = layout
        .add_layer(Packing::Gzip, |out| {
            let mut tar = tar::Builder::new(out);
            entry(&mut tar, "bin/.wh.vi", 0o644, b"")?;
            entry(&mut tar, "etc/motd", 0o644, b"hello")?;
            Ok(tar.finish()?)
        })
        .unwrap();
    let config = serde_json::json!({"Cmd": ["sh"], "Env": ["PATH=/bin", "A=b"], "WorkingDir": "/tmp", "User": "bird"});
    layout
        .add_image(Some("it:1"), "amd64", Dialect::Oci, &[base, top], &config)
        .unwrap();
    let (image, bundle) = (
        layout.directory().display(),
        directory.path().join("bundle"),
    );
    qbundle(&format!("unpack --image {image}:it:1 {}", bundle.display())).ok();
    assert!(!bundle.join("rootfs/bin/vi").exists());
    assert_eq!(
        std::fs::read_to_string(bundle.join("rootfs/etc/motd")).unwrap(),
        "hello"
    );
    let config: Value =
        serde_json::from_slice(&std::fs::read(bundle.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["process"]["cwd"], "/tmp");
    assert_eq!(config["process"]["user"]["uid"], 1000);
    qbundle(&format!("validate {}", bundle.display())).ok();
    goes_through_its_life(&bundle);
}

/// A layer that tries to write outside its directory by each known way.
fn unpack_stays_inside() {
    type Attack = fn(&mut tar::Builder<&mut dyn std::io::Write>) -> std::io::Result<()>;
    let attacks: [(&str, Attack); 4] = [
        ("dots", |tar| raw_entry(tar, "../../escaped", b"x")),
        ("absolute", |tar| {
            raw_entry(tar, "/tmp/qstack-escaped", b"x")
        }),
        ("symlink", |tar| {
            link(tar, tar::EntryType::Symlink, "way", "../..")?;
            raw_entry(tar, "way/escaped", b"x")
        }),
        ("hardlink", |tar| {
            link(tar, tar::EntryType::Link, "way", "../../victim")?;
            raw_entry(tar, "way", b"x")
        }),
    ];
    for (name, attack) in attacks {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        std::fs::write(at.join("victim"), "untouched").unwrap();
        let layout = Layout::create(&at.join("image")).unwrap();
        let layer = layout
            .add_layer(Packing::Gzip, |out| {
                let mut tar = tar::Builder::new(out);
                attack(&mut tar)?;
                Ok(tar.finish()?)
            })
            .unwrap();
        layout
            .add_image(
                Some("it:1"),
                "amd64",
                Dialect::Oci,
                &[layer],
                &serde_json::json!({}),
            )
            .unwrap();
        let outcome = qbundle(&format!(
            "unpack --image {}:it:1 {}",
            layout.directory().display(),
            at.join("bundle").display()
        ));
        assert!(!at.join("escaped").exists(), "{name}{}", outcome.report());
        assert!(
            !std::path::Path::new("/tmp/qstack-escaped").exists(),
            "{name}{}",
            outcome.report()
        );
        assert_eq!(
            std::fs::read_to_string(at.join("victim")).unwrap(),
            "untouched",
            "{name}"
        );
    }
}

/// Appends a file whose path the tar crate would refuse to write.
fn raw_entry(
    tar: &mut tar::Builder<&mut dyn std::io::Write>,
    path: &str,
    content: &[u8],
) -> std::io::Result<()> {
    let mut header = header_named(path);
    header.set_size(content.len() as u64);
    header.set_cksum();
    tar.append(&header, content)
}

fn link(
    tar: &mut tar::Builder<&mut dyn std::io::Write>,
    kind: tar::EntryType,
    path: &str,
    target: &str,
) -> std::io::Result<()> {
    let mut header = header_named(path);
    header.set_entry_type(kind);
    header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
    header.set_cksum();
    tar.append(&header, &b""[..])
}

fn header_named(path: &str) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_mode(0o644);
    header.set_size(0);
    header
}

fn validate_names_what_is_wrong() {
    let good = Bundle::new(&["true"]);
    qbundle(&format!("validate {}", good.path().display())).ok();
    let relative = Bundle::new(&["true"]).with("/process/cwd", "tmp".into());
    let outcome = qbundle(&format!("validate {}", relative.path().display()));
    assert!(outcome.code != 0, "{}", outcome.report());
    let said = outcome.stdout.clone() + &outcome.stderr;
    assert!(said.contains("/process/cwd"), "{}", outcome.report());
    shell(&format!("rm -r {}/rootfs", good.path().display()));
    let outcome = qbundle(&format!("validate {}", good.path().display()));
    assert!(outcome.code != 0, "{}", outcome.report());
}
