//! From a container's `cgroupsPath` and `resources` to directories and values, before anything is touched.
//!
//! Pure, but for one read of `/proc/self/cgroup` when the path is relative to the caller's own cgroup. Paths follow runc:
//! an absolute `cgroupsPath` is below each hierarchy's mount point; a relative one, and the container's id when there is
//! none, is below the caller's own cgroup on v1, and beside it on v2, where a cgroup with processes of its own cannot hand
//! out controllers to children. See config-linux.md, "Cgroups Path".

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::device::{Exceptions, Rules};
use super::hierarchy::{Hierarchies, Hierarchy};
use super::setting::Setting;
use super::{Error, Node, Record, Result, is_pure_v2, systemd, v1, v2};
use crate::rootless;
use crate::spec::resources::Resources;

/// What will be done: the cgroup's directories and the values written there.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(super) targets: Vec<Target>,
    /// Whether the path was given, so that it has to be had.
    pub(super) explicit: bool,
    pub(super) owner: Option<u32>,
    /// Whether a lack of rights is passed over.
    pub(super) rootless: rootless::Choice,
    /// The unit to be started, with the systemd driver.
    pub(super) start: Option<systemd::Start>,
    warnings: Vec<String>,
}

/// The cgroup's directory in one hierarchy, and what is to be set there.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) node: Node,
    pub(super) mount_point: PathBuf,
    pub(super) settings: Vec<Setting>,
    pub(super) devices: Devices,
}

/// What is done about devices in a hierarchy.
#[derive(Debug, Clone)]
pub(super) enum Devices {
    /// Nothing: another hierarchy's business, or everything is allowed.
    Nothing,
    /// v1: the `devices` controller's lists.
    Lists(Exceptions),
    /// v2: a program.
    Program(Rules),
    /// v2: everything is allowed, so a program that is there already has to go.
    NoProgram,
}

impl Target {
    /// The place of a cgroup that exists, for a change of its limits.
    pub(super) fn of(node: &Node) -> Self {
        Self {
            node: node.clone(),
            mount_point: PathBuf::new(),
            settings: Vec::new(),
            devices: Devices::Nothing,
        }
    }

    /// Whether the container needs something of this hierarchy that rootless containers cannot do without.
    pub(super) fn limited_by(&self) -> Option<&str> {
        self.settings.first().map(|setting| &*setting.controller)
    }
}

impl Plan {
    /// Works out paths and values; changes nothing. With the systemd driver it gets the container's annotations, and a user's
    /// own systemd is asked where its cgroup is.
    pub(crate) fn new(
        hierarchies: &Hierarchies,
        container_id: &str,
        cgroups_path: Option<&str>,
        resources: Option<&Resources>,
        systemd: Option<&BTreeMap<String, String>>,
    ) -> Result<Self> {
        let given = cgroups_path.filter(|path| !path.is_empty());
        let mut resources = resources.map_or_else(Cow::default, Cow::Borrowed);
        let place = match systemd {
            Some(_) => {
                systemd::check_running()?;
                systemd::round_quota(resources.to_mut());
                let user = rootless::is_unprivileged();
                Some(systemd::Place::new(given, container_id, user)?)
            }
            None => None,
        };
        let path = match &place {
            Some(place) if place.is_user() => {
                let above = systemd::control_group_of_user()?;
                format!("{}{}", above.trim_end_matches('/'), place.path()?)
            }
            Some(place) => place.path()?,
            None => clean(given.unwrap_or(container_id)),
        };
        let mut targets = Vec::with_capacity(hierarchies.list().len());
        for hierarchy in hierarchies.list() {
            targets.push(Target {
                node: Node {
                    keys: hierarchy.keys().into_iter().map(str::to_owned).collect(),
                    directory: directory(hierarchies, hierarchy, &path)?,
                },
                mount_point: hierarchy.mount_point.clone(),
                settings: Vec::new(),
                devices: Devices::Nothing,
            });
        }
        let pure_v2 = hierarchies.is_pure_v2();
        let warnings = match pure_v2 {
            true => v2::warnings(&resources),
            false => Vec::new(),
        };
        distribute(&mut targets, pure_v2, &resources)?;
        let rules = Rules::new(&resources.devices)?;
        let start = match (place, systemd) {
            (Some(place), Some(annotations)) => Some(systemd::Start {
                place,
                annotated: systemd::annotated(annotations)?,
                resources: resources.into_owned(),
                devices: rules.clone(),
                v2: pure_v2,
            }),
            _ => None,
        };
        if !targets.is_empty() {
            devices(&mut targets, rules)?;
        } else if given.is_some() || start.is_some() {
            return Err(Error::NoHierarchy);
        }
        Ok(Self {
            targets,
            explicit: given.is_some() || start.is_some(),
            owner: None,
            rootless: None,
            start,
            warnings,
        })
    }

    /// Whether the cgroup can be made only when there is a process for it.
    pub(crate) fn needs_process(&self) -> bool {
        self.start.is_some()
    }

    /// Whether that process is in it once it has been made, so that it need not be put there.
    pub(crate) fn takes_process(&self) -> bool {
        let pure_v2 = is_pure_v2(self.nodes());
        pure_v2 && self.start.as_ref().is_some_and(|start| !start.is_slice())
    }

    /// Where the cgroup will be, for state.json to say so before it is made. What [`Plan::create`] gives in the end may lack
    /// some of it in a rootless container.
    pub(crate) fn record(&self) -> Record {
        Record::of(self.nodes(), self.start.as_ref().map(systemd::Start::unit))
    }

    /// The directories.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.targets.iter().map(|target| &target.node)
    }

    /// Things the user should be told; the caller logs them.
    pub(crate) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Says whether a lack of rights is passed over.
    pub(crate) fn set_rootless(&mut self, rootless: rootless::Choice) {
        self.rootless = rootless;
    }

    /// Gives the cgroup to this user of the host, who is to manage it from within: asked for when the container has a
    /// cgroup namespace of its own and `/sys/fs/cgroup` mounted writable (config-linux.md, "Cgroup ownership"). Of effect on
    /// pure v2 alone, and for other users than root.
    pub(crate) fn set_owner(&mut self, uid: u32) {
        let pure_v2 = is_pure_v2(self.nodes());
        self.owner = Some(uid).filter(|uid| pure_v2 && *uid != 0);
    }
}

/// Hands each setting to the hierarchy that has its controller.
pub(super) fn distribute(
    targets: &mut [Target],
    pure_v2: bool,
    resources: &Resources,
) -> Result<()> {
    if pure_v2 {
        if let [target] = targets {
            target.settings = v2::settings(resources)?;
        }
        return Ok(());
    }
    let mut missing: Vec<String> = Vec::new();
    for setting in v1::settings(resources)? {
        match targets
            .iter_mut()
            .find(|target| target.node.has(&setting.controller))
        {
            Some(target) => target.settings.push(setting),
            None if missing.iter().any(|name| *name == setting.controller) => {}
            None => missing.push(setting.controller.into_owned()),
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    // A hybrid host may have left a controller to the v2 tree.
    let Some(unified) = targets.iter_mut().find(|target| target.node.is_v2()) else {
        return Err(Error::NoController {
            controller: missing.swap_remove(0),
        });
    };
    for setting in v2::settings(resources)? {
        let name = if setting.controller == "io" {
            "blkio"
        } else {
            &*setting.controller
        };
        if missing.iter().any(|missing| missing == name) {
            unified.settings.push(setting);
        }
    }
    match missing
        .into_iter()
        .find(|name| ["net_cls", "net_prio"].contains(&name.as_str()))
    {
        Some(controller) => Err(Error::NoController { controller }),
        None => Ok(()),
    }
}

/// Devices must be restricted somewhere, or the container is refused.
fn devices(targets: &mut [Target], rules: Rules) -> Result<()> {
    if let Some(target) = targets.iter_mut().find(|target| target.node.has("devices")) {
        target.devices = Devices::Lists(rules.exceptions()?);
    } else if let Some(target) = targets.iter_mut().find(|target| target.node.is_v2()) {
        target.devices = match rules.allows_everything() {
            true => Devices::NoProgram,
            false => Devices::Program(rules),
        };
    } else {
        return Err(Error::NoController {
            controller: "devices".to_owned(),
        });
    }
    Ok(())
}

/// The cgroup's directory in a hierarchy.
fn directory(hierarchies: &Hierarchies, hierarchy: &Hierarchy, path: &str) -> Result<PathBuf> {
    if let Some(inner) = path.strip_prefix('/') {
        return Ok(hierarchy.mount_point.join(inner));
    }
    let own = Path::new(hierarchies.own_path(hierarchy)?);
    let own = if hierarchies.is_pure_v2() {
        own.parent().unwrap_or(own)
    } else {
        own
    };
    // A path out of the namespace's root ("/../x") cannot be reached through this mount.
    let own = clean(&own.to_string_lossy());
    Ok(hierarchy
        .mount_point
        .join(own.trim_start_matches('/'))
        .join(path))
}

/// Removes `.`, `..` and doubled slashes without looking at the file system; `..` does not lead above the start.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let root = if path.starts_with('/') { "/" } else { "" };
    format!("{root}{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hierarchy(name: &str, data: Option<&str>, own: &str) -> Hierarchy {
        Hierarchy {
            name: name.to_owned(),
            links: Vec::new(),
            mount_data: data.map(str::to_owned),
            mount_point: Path::new("/sys/fs/cgroup").join(name),
            own_path: own.to_owned(),
        }
    }

    fn hybrid() -> Hierarchies {
        let list = vec![
            hierarchy("memory", Some("memory"), "/own/group"),
            hierarchy("devices", Some("devices"), "/"),
            hierarchy("unified", None, "/"),
        ];
        Hierarchies::fixed(list, "")
    }

    fn unified() -> Hierarchies {
        Hierarchies::fixed(
            vec![hierarchy("", None, "")],
            "0::/user.slice/session.scope\n",
        )
    }

    fn directories(hierarchies: &Hierarchies, path: Option<&str>) -> Vec<String> {
        let plan = Plan::new(hierarchies, "id1", path, None, None).unwrap();
        plan.targets
            .iter()
            .map(|target| target.node.directory.to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn directories_of_a_path() {
        for (path, memory, alone) in [
            (None, "/memory/own/group/id1", "/user.slice/id1"),
            (Some(""), "/memory/own/group/id1", "/user.slice/id1"),
            (Some("a/b"), "/memory/own/group/a/b", "/user.slice/a/b"),
            (Some("/a/b"), "/memory/a/b", "/a/b"),
            (Some("/../../a/./b//"), "/memory/a/b", "/a/b"),
            (Some("../../a"), "/memory/own/group/a", "/user.slice/a"),
        ] {
            let expected = format!("/sys/fs/cgroup{memory}");
            assert_eq!(directories(&hybrid(), path)[0], expected, "{path:?}");
            let expected = format!("/sys/fs/cgroup{alone}");
            assert_eq!(directories(&unified(), path)[0], expected, "{path:?}");
        }
    }

    #[test]
    fn settings_go_where_their_controller_is() {
        let json = r#"{"memory":{"limit":100000},"hugepageLimits":[{"pageSize":"2MB","limit":0}]}"#;
        let resources: Resources = serde_json::from_str(json).unwrap();
        let plan = Plan::new(&hybrid(), "id", None, Some(&resources), None).unwrap();
        let files: Vec<Vec<_>> = plan
            .targets
            .iter()
            .map(|target| {
                target
                    .settings
                    .iter()
                    .map(|setting| &*setting.file)
                    .collect()
            })
            .collect();
        assert_eq!(files[0], ["memory.limit_in_bytes"]);
        assert_eq!(files[2], ["hugetlb.2MB.max", "hugetlb.2MB.rsvd.max"]);
        assert!(matches!(plan.targets[1].devices, Devices::Lists(_)));
    }

    #[test]
    fn no_hierarchy_for_a_limit() {
        let resources: Resources = serde_json::from_str(r#"{"network":{"classID":7}}"#).unwrap();
        let error = Plan::new(&hybrid(), "id", None, Some(&resources), None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot set net_cls limit: no mounted cgroup hierarchy has this controller"
        );
    }
}
