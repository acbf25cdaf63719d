//! `user[:group]` → numbers, by the image's own passwd and group files.
//!
//! Docker's rules. A number is a number and is never looked up as a name, however
//! the passwd file calls its users (CVE-2016-3697); one that no id can have is an
//! error, never a name and never a remainder (CVE-2024-40635). The files are
//! the image's, so they are read only up to a limit, and only if they are files.
//!
//! Governing text: image-spec, config.md, "User"; passwd(5), group(5).

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::rooted;

/// The most that is read of a passwd or group file, in bytes.
const MAX_FILE: u64 = 8 << 20;
/// The highest id docker and containerd accept.
const MAX_ID: u64 = (1 << 31) - 1;

/// Who a process runs as.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups, sorted, the primary one among them: a process must not get
    /// rid of a group that a file denies access to (CVE-2022-36109).
    pub additional_gids: Vec<u32>,
    /// The home directory; `/` when the passwd file has no such user.
    pub home: String,
}

/// A user can not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read.
    #[error("read the image's {0}")]
    Read(&'static str, #[source] io::Error),
    /// A file is larger than any honest one.
    #[error("the image's {0} is larger than {MAX_FILE} bytes")]
    TooLarge(&'static str),
    /// Not in the passwd file.
    #[error("no user {0:?} in the image's /etc/passwd")]
    NoUser(String),
    /// Not in the group file.
    #[error("no group {0:?} in the image's /etc/group")]
    NoGroup(String),
    /// A number outside 0…2³¹-1.
    #[error("user or group id {0:?} is out of range")]
    Range(String),
}

/// Resolves `spec`, `user`, `uid`, `user:group`, `uid:gid` and so on, by the content
/// of a passwd and a group file. An empty user is root.
///
/// # Errors
/// Unknown names, ids out of range, files that can not be read or are too large.
pub fn resolve(spec: &str, passwd: impl Read, group: impl Read) -> Result<User, Error> {
    let (user, group_name) = spec.split_once(':').unwrap_or((spec, ""));
    let wanted = match user {
        "" => Wanted::Id(0),
        name => Wanted::parse(name)?,
    };
    let passwd = read(passwd, "/etc/passwd")?;
    let entry = find_user(&passwd, &wanted)?;
    let mut resolved = match (&entry, &wanted) {
        (Some(entry), _) => User {
            uid: entry.uid,
            gid: entry.gid,
            home: entry.home.to_owned(),
            ..User::default()
        },
        (None, Wanted::Id(uid)) => User {
            uid: *uid,
            ..User::default()
        },
        (None, Wanted::Name(name)) => return Err(Error::NoUser((*name).to_owned())),
    };
    if resolved.home.is_empty() {
        "/".clone_into(&mut resolved.home);
    }
    let group = read(group, "/etc/group")?;
    let mut gids = BTreeSet::new();
    if !group_name.is_empty() {
        // An explicit group stands alone.
        resolved.gid = find_group(&group, &Wanted::parse(group_name)?)?;
    } else if let Some(entry) = &entry {
        gids = memberships(&group, entry.name)?;
    }
    gids.insert(resolved.gid);
    resolved.additional_gids = gids.into_iter().collect();
    Ok(resolved)
}

/// Resolves group names or numbers (`--group-add`) by the content of a group file.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_groups(names: &[String], group: impl Read) -> Result<Vec<u32>, Error> {
    let group = read(group, "/etc/group")?;
    names
        .iter()
        .map(|name| find_group(&group, &Wanted::parse(name)?))
        .collect()
}

/// Resolves `spec` by the files in the tree at `rootfs`, never by the host's.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_in(rootfs: &Path, spec: &str) -> Result<User, Error> {
    resolve(
        spec,
        open(rootfs, "/etc/passwd")?,
        open(rootfs, "/etc/group")?,
    )
}

/// Resolves group names or numbers by the group file in the tree at `rootfs`.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_groups_in(rootfs: &Path, names: &[String]) -> Result<Vec<u32>, Error> {
    resolve_groups(names, open(rootfs, "/etc/group")?)
}

/// Opens a file of the tree; one that is not there is as good as an empty one.
fn open(rootfs: &Path, name: &'static str) -> Result<Box<dyn Read>, Error> {
    let failed = |error| Error::Read(name, error);
    let root = match File::open(rootfs) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Box::new(io::empty())),
        other => other.map_err(failed)?,
    };
    match rooted::open_file(&root, name.as_bytes()) {
        Ok(file) => Ok(Box::new(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Box::new(io::empty())),
        Err(error) => Err(failed(error)),
    }
}

fn read(input: impl Read, name: &'static str) -> Result<String, Error> {
    let mut bytes = Vec::new();
    input
        .take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Error::Read(name, error))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Error::TooLarge(name));
    }
    // A comment field in some other encoding is no reason to refuse the rest.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What a part of the specification asks for.
#[derive(Debug)]
enum Wanted<'s> {
    Id(u32),
    Name(&'s str),
}

impl<'s> Wanted<'s> {
    fn parse(text: &'s str) -> Result<Wanted<'s>, Error> {
        let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
        let numeric = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        if numeric {
            id(text).map(Wanted::Id)
        } else {
            Ok(Wanted::Name(text))
        }
    }

    fn matches(&self, name: &str, number: &str) -> bool {
        match self {
            Wanted::Name(wanted) => name == *wanted,
            Wanted::Id(wanted) => number.parse() == Ok(*wanted),
        }
    }
}

fn id(text: &str) -> Result<u32, Error> {
    let range = || Error::Range(text.chars().take(64).collect());
    match text.parse::<u64>() {
        Ok(number) if number <= MAX_ID => u32::try_from(number).map_err(|_| range()),
        _ => Err(range()),
    }
}

struct Entry<'f> {
    name: &'f str,
    uid: u32,
    gid: u32,
    home: &'f str,
}

/// The first matching line. Its numbers must be numbers: what is none is not taken for 0.
fn find_user<'f>(passwd: &'f str, wanted: &Wanted<'_>) -> Result<Option<Entry<'f>>, Error> {
    for fields in lines(passwd) {
        let field = |position: usize| fields.get(position).copied().unwrap_or_default();
        if !wanted.matches(field(0), field(2)) {
            continue;
        }
        return Ok(Some(Entry {
            name: field(0),
            uid: id(field(2))?,
            gid: id(field(3))?,
            home: field(5),
        }));
    }
    Ok(None)
}

fn find_group(group: &str, wanted: &Wanted<'_>) -> Result<u32, Error> {
    match wanted {
        Wanted::Id(gid) => Ok(*gid),
        Wanted::Name(name) => {
            let mut lines = lines(group);
            let fields = lines.find(|fields| fields[0] == *name);
            let fields = fields.ok_or_else(|| Error::NoGroup((*name).to_owned()))?;
            id(fields.get(2).copied().unwrap_or_default())
        }
    }
}

/// The groups that list a user.
fn memberships(group: &str, name: &str) -> Result<BTreeSet<u32>, Error> {
    lines(group)
        .filter(|fields| {
            let members = fields.get(3).copied().unwrap_or_default();
            !name.is_empty() && members.split(',').any(|member| member == name)
        })
        .map(|fields| id(fields.get(2).copied().unwrap_or_default()))
        .collect()
}

fn lines(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split(':').collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# comment\n\
        web:x:33:34:web:/srv/www:/bin/sh\nweb:x:99:99::/second:/bin/sh\n\
        1000:x:0:0:named like a number:/root:/bin/sh\n4294967296:x:0:0::/root:\n\
        real:x:1000:1001::/home/real:\nbad:x:abc:0::/:\nnone:x\nhuge:x:4294967296:0::/:\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nadm:x:4:web,real\nshadow:x:42:web\n\
        77:x:0:\nbad:x:-1:nobody\n";

    fn get(spec: &str) -> Result<(u32, u32, Vec<u32>, String), String> {
        let user = resolve(spec, PASSWD.as_bytes(), GROUP.as_bytes());
        let user = user.map_err(|error| error.to_string())?;
        Ok((user.uid, user.gid, user.additional_gids, user.home))
    }

    #[test]
    fn all_forms_resolve() {
        let cases: [(&str, u32, u32, &[u32], &str); 14] = [
            ("", 0, 0, &[0], "/root"),
            ("0", 0, 0, &[0], "/root"),
            ("root", 0, 0, &[0], "/root"),
            ("web", 33, 34, &[4, 34, 42], "/srv/www"),
            ("33", 33, 34, &[4, 34, 42], "/srv/www"),
            ("web:adm", 33, 4, &[4], "/srv/www"),
            ("web:77", 33, 77, &[77], "/srv/www"),
            ("web:", 33, 34, &[4, 34, 42], "/srv/www"),
            (":adm", 0, 4, &[4], "/root"),
            ("1000", 1000, 1001, &[4, 1001], "/home/real"),
            ("1000:1000", 1000, 1000, &[1000], "/home/real"),
            ("5000", 5000, 0, &[0], "/"),
            ("5000:5000", 5000, 5000, &[5000], "/"),
            (
                "2147483647:2147483647",
                2_147_483_647,
                2_147_483_647,
                &[2_147_483_647],
                "/",
            ),
        ];
        for (spec, uid, gid, groups, home) in cases {
            assert_eq!(
                get(spec),
                Ok((uid, gid, groups.to_vec(), home.to_owned())),
                "{spec:?}"
            );
        }
    }

    #[test]
    fn no_number_wraps_or_becomes_a_name() {
        for spec in [
            "4294967296",
            "2147483648",
            "65536000000",
            "-1",
            "18446744073709551616",
            "99999999999999999999999999",
            "0:4294967296",
            "web:-1",
            "huge",
            "bad",
            "none",
        ] {
            assert!(get(spec).unwrap_err().contains("out of range"), "{spec:?}");
        }
        for spec in [
            "nobody",
            "web:nogroup",
            "root:root:root",
            " root",
            "0x0",
            "1e3",
        ] {
            assert!(get(spec).unwrap_err().starts_with("no "), "{spec:?}");
        }
    }

    #[test]
    fn endless_files_are_refused() {
        let error = resolve("web", io::repeat(b'x'), io::empty()).unwrap_err();
        assert!(matches!(error, Error::TooLarge("/etc/passwd")));
        let error = resolve("0", io::empty(), io::repeat(b'\n')).unwrap_err();
        assert!(matches!(error, Error::TooLarge("/etc/group")));
    }

    #[test]
    fn only_the_tree_is_looked_at() {
        let directory = tempfile::tempdir().unwrap();
        let etc = directory.path().join("root/etc");
        std::fs::create_dir_all(&etc).unwrap();
        let root = directory.path().join("root");
        std::fs::write(directory.path().join("passwd"), "out:x:7:7::/:\n").unwrap();

        assert_eq!(resolve_in(&root, "12").unwrap().uid, 12);
        for target in [
            "../../passwd",
            "/etc/passwd",
            "/dev/zero",
            "/proc/self/environ",
        ] {
            std::os::unix::fs::symlink(target, etc.join("passwd")).unwrap();
            assert!(resolve_in(&root, "out").is_err(), "{target}");
            std::fs::remove_file(etc.join("passwd")).unwrap();
        }
        let fifo = etc.join("passwd");
        let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR);
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, mode, 0).unwrap();
        assert!(matches!(
            resolve_in(&root, "0"),
            Err(Error::Read("/etc/passwd", _))
        ));
        std::fs::remove_file(&fifo).unwrap();

        std::fs::create_dir(root.join("usr")).unwrap();
        std::fs::write(root.join("usr/passwd"), PASSWD).unwrap();
        std::os::unix::fs::symlink("/usr/passwd", etc.join("passwd")).unwrap();
        assert_eq!(resolve_in(&root, "web").unwrap().uid, 33);
        assert_eq!(resolve_groups_in(&root, &["5".into()]).unwrap(), [5]);
        assert!(resolve_groups_in(&root, &["web".into()]).is_err());
    }
}
