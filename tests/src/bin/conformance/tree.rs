//! The tree that the suite runs in, and the root file systems of its containers, made from Debian's packages.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};

/// What the suite, its build, and the runtimes call.
const PACKAGES: &str = "bats,busybox-static,ca-certificates,criu,e2fsprogs,gawk,gcc,git,golang-go,iproute2,iptables,jq,kmod,\
                        libc6-dev,libcap2-bin,libseccomp-dev,make,pkg-config,procps,sudo,udev,uidmap,util-linux,xz-utils";

/// Makes both, unless they are there.
pub(super) fn make(tree: &Path, images: &Path) -> anyhow::Result<()> {
    if !tree.join("usr/bin/bats").exists() {
        fs::create_dir_all(tree)?;
        let include = format!("--include={PACKAGES}");
        // Where bats, criu and Go are as new as runc's suite wants them.
        debootstrap(&[&include, "sid"], tree)?;
    }
    fs::create_dir_all(images)?;
    let debian = images.join("debian");
    if !images.join("debian.tar").exists() {
        debootstrap(&["--variant=minbase", "bookworm"], &debian)?;
        pack(&debian, &images.join("debian.tar"))?;
    }
    if !images.join("busybox.tar").exists() {
        let busybox = images.join("busybox");
        fill_busybox(&tree.join("usr/bin/busybox"), &busybox)?;
        pack(&busybox, &images.join("busybox.tar"))?;
    }
    Ok(())
}

fn debootstrap(arguments: &[&str], directory: &Path) -> anyhow::Result<()> {
    run(Command::new("debootstrap").args(arguments).arg(directory))
}

/// A root file system that is little but busybox. Like the official image it has no `/proc` and no `/sys`: tests put
/// symbolic links there.
fn fill_busybox(busybox: &Path, root: &Path) -> anyhow::Result<()> {
    for directory in [
        "bin",
        "dev",
        "etc",
        "home",
        "root",
        "tmp",
        "usr/bin",
        "usr/sbin",
        "var/spool/mail",
    ] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::set_permissions(root, fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    let own = root.join("bin/busybox");
    fs::copy(busybox, &own).with_context(|| format!("copy {}", busybox.display()))?;
    let list = Command::new(&own).arg("--list").output()?;
    for applet in String::from_utf8(list.stdout)?
        .lines()
        .filter(|applet| *applet != "busybox")
    {
        fs::hard_link(&own, root.join("bin").join(applet))?;
    }
    symlink("../../bin/env", root.join("usr/bin/env"))?;
    let mut passwd = String::new();
    let mut group = String::new();
    for (name, id, home) in [
        ("root", 0, "/root"),
        ("daemon", 1, "/usr/sbin"),
        ("mail", 8, "/var/spool/mail"),
        ("nobody", 65534, "/home"),
    ] {
        let shell = if id == 0 { "/bin/sh" } else { "/bin/false" };
        passwd.push_str(&format!("{name}:x:{id}:{id}:{name}:{home}:{shell}\n"));
    }
    for (name, id) in [
        ("root", 0),
        ("daemon", 1),
        ("tty", 5),
        ("mail", 8),
        ("users", 100),
        ("nobody", 65534),
    ] {
        group.push_str(&format!("{name}:x:{id}:\n"));
    }
    fs::write(root.join("etc/passwd"), passwd)?;
    fs::write(root.join("etc/group"), group)?;
    Ok(())
}

/// Packs a root file system; by another name first, so that a half one is never taken for whole.
fn pack(root: &Path, file: &Path) -> anyhow::Result<()> {
    let part = file.with_extension("part");
    run(Command::new("tar")
        .args(["--numeric-owner", "-C"])
        .arg(root)
        .arg("-cf")
        .arg(&part)
        .arg("."))?;
    fs::remove_dir_all(root)?;
    Ok(fs::rename(part, file)?)
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("{command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}
