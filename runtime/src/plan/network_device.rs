//! Network devices of the runtime's network namespace that become the container's.
//!
//! Governing text: runtime-spec config-linux.md, "Linux Network Devices". The texts of refusals are runc's.

use std::collections::BTreeMap;

use super::Error;
use crate::namespace::{Kind, Namespaces};
use crate::spec::linux::NetDevice;

/// A device to move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetworkDevice {
    /// Its name outside.
    pub(crate) outside: String,
    /// Its name inside.
    pub(crate) inside: String,
}

/// Checks what a spec asks for.
pub(super) fn plan(
    devices: &BTreeMap<String, NetDevice>,
    namespaces: &Namespaces,
) -> Result<Vec<NetworkDevice>, Error> {
    if !devices.is_empty() && !namespaces.contains(Kind::Network) {
        return Err(Error::invalid(
            "unable to move network devices without a NET namespace",
        ));
    }
    let planned = devices.iter().map(|(outside, device)| {
        let inside = match device.name.as_str() {
            "" => outside,
            name => name,
        };
        match [outside.as_str(), inside]
            .into_iter()
            .find(|name| !is_valid(name))
        {
            Some(name) => Err(Error::Invalid(format!(
                "invalid network device name {name:?}"
            ))),
            None => Ok(NetworkDevice {
                outside: outside.clone(),
                inside: inside.to_owned(),
            }),
        }
    });
    planned.collect()
}

/// The kernel's rule (`dev_valid_name`), so that a bad name is told as such.
fn is_valid(name: &str) -> bool {
    !name.is_empty()
        && name.len() < libc::IFNAMSIZ
        && name != "."
        && name != ".."
        && !name.contains(|character: char| "/:\0".contains(character) || character.is_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::linux::Linux;

    fn planned(devices: &str, namespaces: &str) -> Result<Vec<NetworkDevice>, String> {
        let linux: Linux = serde_json::from_str(&format!(
            r#"{{"netDevices":{devices},"namespaces":[{{"type":"mount"}}{namespaces}]}}"#
        ))
        .unwrap();
        let namespaces = Namespaces::new(&linux).unwrap();
        plan(&linux.net_devices, &namespaces).map_err(|error| error.to_string())
    }

    #[test]
    fn names() {
        const NET: &str = r#",{"type":"network"}"#;
        let devices = planned(r#"{"eth1":{},"eth2":{"name":"lan"}}"#, NET).unwrap();
        let names: Vec<_> = devices
            .iter()
            .map(|it| (it.outside.as_str(), it.inside.as_str()))
            .collect();
        assert_eq!(names, [("eth1", "eth1"), ("eth2", "lan")]);
        for name in ["", ".", "..", "a/b", "a:b", "a b", "sixteencharacter"] {
            let text = format!(r#"{{"{name}":{{}}}}"#);
            let error = planned(&text, NET).unwrap_err();
            assert_eq!(error, format!("invalid network device name {name:?}"));
        }
        assert!(planned(r#"{"a":{"name":"b/c"}}"#, NET).is_err());
        assert_eq!(
            planned(r#"{"a":{}}"#, "").unwrap_err(),
            "unable to move network devices without a NET namespace"
        );
        assert!(planned("{}", "").is_ok());
    }
}
