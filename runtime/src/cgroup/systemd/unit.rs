//! Which unit a container gets, and where its cgroup is then: what `cgroupsPath` means to the systemd driver.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Error, Result};

/// A container's unit, as state.json keeps it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unit {
    /// `PREFIX-NAME.scope`, or a slice.
    pub(crate) name: String,
    /// Whether it is one of the user's own systemd.
    #[serde(default)]
    pub(crate) user: bool,
}

/// A unit and the slice it is to be in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cgroup) struct Place {
    pub(super) unit: Unit,
    pub(super) slice: String,
    /// Last part of `cgroupsPath`, or the container's id.
    pub(super) name: String,
}

impl Unit {
    /// Whether it is a slice, which has no processes of its own for systemd.
    pub(super) fn is_slice(&self) -> bool {
        self.name.ends_with(".slice")
    }

    /// What comes below the unit's own cgroup in a path: `/` or `/sub/cgroup`.
    pub(super) fn below(&self, directory: &Path) -> Option<PathBuf> {
        let mut parts = directory.components();
        parts.find(|part| part.as_os_str() == self.name.as_str())?;
        Some(Path::new("/").join(parts.as_path()))
    }
}

impl Place {
    /// Reads `slice:prefix:name`; without a path it is the default slice and `qrun-ID.scope`.
    pub(in crate::cgroup) fn new(
        given: Option<&str>,
        container_id: &str,
        user: bool,
    ) -> Result<Self> {
        let parts: Vec<&str> = match given {
            None => vec!["", "qrun", container_id],
            Some(path) => path.split(':').collect(),
        };
        let [slice, prefix, name] = parts.as_slice() else {
            return Err(Error::Path(given.unwrap_or_default().to_owned()));
        };
        let slice = match (*slice, user) {
            ("", true) => "user.slice",
            ("", false) => "system.slice",
            (slice, _) => slice,
        };
        // Checked here, so that nothing has been made yet.
        expand(slice)?;
        let unit = match name.ends_with(".slice") {
            true => (*name).to_owned(),
            false => format!("{prefix}-{name}.scope"),
        };
        if unit.contains('/') || unit.len() > 255 {
            return Err(Error::UnitName(unit));
        }
        Ok(Self {
            unit: Unit { name: unit, user },
            slice: slice.to_owned(),
            name: (*name).to_owned(),
        })
    }

    /// The unit's cgroup below the one of systemd itself.
    pub(in crate::cgroup) fn path(&self) -> Result<String> {
        let slice = expand(&self.slice)?;
        Ok(format!(
            "{}/{}",
            slice.trim_end_matches('/'),
            self.unit.name
        ))
    }

    /// Whether it is one of the user's own systemd.
    pub(in crate::cgroup) fn is_user(&self) -> bool {
        self.unit.user
    }
}

/// The cgroup of a slice: each dash in its name is a level.
fn expand(slice: &str) -> Result<String> {
    let malformed = || Error::SliceName(slice.to_owned());
    let name = slice.strip_suffix(".slice").ok_or_else(malformed)?;
    if name == "-" {
        return Ok("/".to_owned());
    }
    if name.contains('/') || name.split('-').any(str::is_empty) {
        return Err(malformed());
    }
    let ends = name
        .match_indices('-')
        .map(|(at, _)| at)
        .chain([name.len()]);
    Ok(ends.map(|end| format!("/{}.slice", &name[..end])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        for (path, user, unit, expected) in [
            (
                None,
                false,
                "qrun-id1.scope",
                "/system.slice/qrun-id1.scope",
            ),
            (None, true, "qrun-id1.scope", "/user.slice/qrun-id1.scope"),
            (
                Some("user-1000.slice:docker:abc"),
                false,
                "docker-abc.scope",
                "/user.slice/user-1000.slice/docker-abc.scope",
            ),
            (
                Some("machine.slice::x"),
                false,
                "-x.scope",
                "/machine.slice/-x.scope",
            ),
            (Some("-.slice:y:x.slice"), false, "x.slice", "/x.slice"),
            (Some(":p:n"), true, "p-n.scope", "/user.slice/p-n.scope"),
        ] {
            let place = Place::new(path, "id1", user).unwrap();
            assert_eq!(place.unit.name, unit, "{path:?}");
            assert_eq!(place.path().unwrap(), expected, "{path:?}");
        }
    }

    #[test]
    fn bad_paths() {
        for (path, expected) in [
            (
                "/a/b",
                r#"expected cgroupsPath to be of format "slice:prefix:name" for systemd cgroups, got "/a/b" instead"#,
            ),
            (
                "a.slice:b:c:d",
                r#"expected cgroupsPath to be of format "slice:prefix:name" for systemd cgroups, got "a.slice:b:c:d" instead"#,
            ),
            ("a--b.slice:x:y", "invalid slice name: a--b.slice"),
            ("-a.slice:x:y", "invalid slice name: -a.slice"),
            ("noslice:x:y", "invalid slice name: noslice"),
            ("u.slice/v.slice:x:y", "invalid slice name: u.slice/v.slice"),
            (
                "u.slice:x:../../y",
                r#"invalid unit name "x-../../y.scope""#,
            ),
        ] {
            let error = Place::new(Some(path), "id", false).unwrap_err();
            assert_eq!(error.to_string(), expected, "{path}");
        }
    }

    #[test]
    fn below_the_unit() {
        let unit = Place::new(Some("a.slice:p:n"), "", false).unwrap().unit;
        for (directory, expected) in [
            ("/sys/fs/cgroup/a.slice/p-n.scope", Some("/")),
            ("/sys/fs/cgroup/a.slice/p-n.scope/b/c", Some("/b/c")),
            ("/sys/fs/cgroup/other", None),
        ] {
            let found = unit.below(Path::new(directory));
            assert_eq!(found.as_deref(), expected.map(Path::new), "{directory}");
        }
    }
}
