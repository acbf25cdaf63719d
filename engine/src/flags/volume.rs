//! What is mounted into a container: `-v`, `--mount`, `--volumes-from`.

use anyhow::{Context, Result, bail};
use clap::Args;
use qengine::container::create::{clean_path, new_volume_name};
use qengine::container::find::Handle;
use qengine::container::model::{Volume, VolumeSource};
use qengine::store::Store;
use qengine::volume::check_name;

use super::mount;

/// Options that are understood; `z` and `Z` ask for labels that a machine without SELinux has not.
const KNOWN: [&str; 24] = [
    "ro",
    "rw",
    "z",
    "Z",
    "nocopy",
    "cached",
    "delegated",
    "consistent",
    "private",
    "rprivate",
    "shared",
    "rshared",
    "slave",
    "rslave",
    "bind",
    "rbind",
    "U",
    "O",
    "noexec",
    "exec",
    "nosuid",
    "suid",
    "nodev",
    "dev",
];

/// Options of which only one can be meant.
const EXCLUSIVE: [&[&str]; 6] = [
    &["ro", "rw", "O"],
    &["z", "Z"],
    &[
        "private", "rprivate", "shared", "rshared", "slave", "rslave",
    ],
    &["noexec", "exec"],
    &["nosuid", "suid"],
    &["nodev", "dev"],
];

/// Flags about volumes, as typed.
#[derive(Debug, Args)]
pub(crate) struct VolumeFlags {
    /// Mount a host path or a named volume
    #[arg(short, long, value_name = "[SOURCE:]DEST[:ro]")]
    volume: Vec<String>,
    /// Mount something, said in full: type=bind|volume|tmpfs|image,source=…,target=…[,readonly]
    #[arg(long, value_name = "KEY=VALUE,…")]
    mount: Vec<String>,
    /// Mount what another container has mounted
    #[arg(long, value_name = "CONTAINER[:ro]")]
    volumes_from: Vec<String>,
}

impl VolumeFlags {
    /// Everything that is to be mounted. What is said for this container wins over what another one has.
    pub(crate) fn volumes(&self, store: &Store) -> Result<Vec<Volume>> {
        let mut own = Vec::new();
        for text in &self.volume {
            own.push(parse(text)?);
        }
        for text in &self.mount {
            own.push(mount::parse(store, text)?);
        }
        let mut all: Vec<Volume> = Vec::new();
        for text in &self.volumes_from {
            for volume in of_another(store, text)? {
                let is_elsewhere = |other: &Volume| other.destination != volume.destination;
                all.retain(is_elsewhere);
                if own.iter().all(is_elsewhere) {
                    all.push(volume);
                }
            }
        }
        all.extend(own);
        Ok(all)
    }
}

/// `--volumes-from CONTAINER[:MODE]`.
fn of_another(store: &Store, text: &str) -> Result<Vec<Volume>> {
    let (container, mode) = text.split_once(':').unwrap_or((text, ""));
    if container.is_empty() {
        bail!("invalid volumes-from specification: {text:?}");
    }
    let options = split_options(mode);
    if let Some(option) = options
        .iter()
        .find(|option| !["ro", "rw", "z", "Z"].contains(&option.as_str()))
    {
        bail!("invalid mode for volumes-from: {option}");
    }
    let read_only = options.iter().any(|option| option == "ro");
    let volumes = Handle::find(store, container)?.config.options.volumes;
    let shared = volumes
        .into_iter()
        .filter(|volume| !matches!(volume.source, VolumeSource::Tmpfs | VolumeSource::Image(_)));
    Ok(shared
        .map(|mut volume| {
            if read_only && !volume.read_only {
                volume.read_only = true;
                volume.options.retain(|option| option != "rw");
                volume.options.push("ro".to_owned());
            }
            volume
        })
        .collect())
}

/// `-v`: `[SOURCE:]DESTINATION[:OPTIONS]`.
fn parse(text: &str) -> Result<Volume> {
    let wrong = |why: String| anyhow::anyhow!("invalid volume specification: '{text}': {why}");
    let parts: Vec<&str> = text.split(':').collect();
    let (source, destination, options) = match parts.as_slice() {
        [destination] => (None, *destination, ""),
        [first, second] if first.starts_with('/') && !second.starts_with('/') => {
            (None, *first, *second)
        }
        [source, destination] => (Some(*source), *destination, ""),
        [source, destination, options] => (Some(*source), *destination, *options),
        _ => {
            return Err(wrong(
                "expected [SOURCE:]DESTINATION[:OPTIONS]; a path with a colon in it needs --mount"
                    .to_owned(),
            ));
        }
    };
    let destination = destination_of(destination).map_err(&wrong)?;
    let options = split_options(options);
    check_options(&options).map_err(&wrong)?;
    Ok(Volume {
        source: match source {
            None => VolumeSource::Anonymous(new_volume_name()?),
            Some(source) => source_of(source)
                .with_context(|| format!("invalid volume specification: '{text}'"))?,
        },
        destination,
        read_only: options.iter().any(|option| option == "ro"),
        options,
        mount: None,
    })
}

/// A place inside, as text in its one form.
pub(super) fn destination_of(path: &str) -> Result<String, String> {
    match clean_path(path) {
        Some(clean) if clean != "/" => Ok(clean),
        Some(_) => Err("invalid specification: destination can't be '/'".to_owned()),
        None => Err(format!(
            "invalid mount path: '{path}' mount path must be absolute"
        )),
    }
}

fn split_options(text: &str) -> Vec<String> {
    text.split(',')
        .filter(|option| !option.is_empty())
        .map(str::to_owned)
        .collect()
}

fn check_options(options: &[String]) -> Result<(), String> {
    if let Some(unknown) = options
        .iter()
        .find(|option| !KNOWN.contains(&option.as_str()))
    {
        return Err(format!("invalid mode: {unknown}"));
    }
    for group in EXCLUSIVE {
        let given = options
            .iter()
            .filter(|option| group.contains(&option.as_str()));
        if given.count() > 1 {
            return Err(format!("invalid mode: {}", options.join(",")));
        }
    }
    Ok(())
}

fn source_of(source: &str) -> Result<VolumeSource> {
    if source.starts_with('/') {
        return Ok(VolumeSource::Path(source.to_owned()));
    }
    if source == "." || source == ".." || source.starts_with("./") || source.starts_with("../") {
        return Ok(VolumeSource::Path(absolute(source)?));
    }
    check_name(source)?;
    Ok(VolumeSource::Named(source.to_owned()))
}

/// A relative path of the host in full. `..` is left to the kernel, which knows what is a link.
pub(super) fn absolute(path: &str) -> Result<String> {
    let path = std::path::absolute(path)?;
    match path.to_str() {
        Some(path) => Ok(path.to_owned()),
        None => bail!("{} is not written in UTF-8", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form() {
        let volume = parse("/a:/b:ro").unwrap();
        assert_eq!(volume.source, VolumeSource::Path("/a".into()));
        assert_eq!(
            (volume.destination.as_str(), volume.read_only),
            ("/b", true)
        );
        assert_eq!(
            parse("data:/b").unwrap().source,
            VolumeSource::Named("data".into())
        );
        assert!(matches!(
            parse("/b").unwrap().source,
            VolumeSource::Anonymous(_)
        ));
        assert!(parse("/b:ro").unwrap().read_only);
        let here = std::env::current_dir().unwrap();
        let here = here.to_str().unwrap();
        assert_eq!(
            parse("./x:/b:rw,z,rslave").unwrap().source,
            VolumeSource::Path(format!("{here}/x"))
        );
    }

    #[test]
    fn what_is_no_volume_is_refused() {
        for (bad, why) in [
            ("", "must be absolute"),
            ("a:b", "must be absolute"),
            ("/a:/b:nosuch", "invalid mode: nosuch"),
            ("/a:/b:ro,rw", "invalid mode: ro,rw"),
            ("/a:/", "destination can't be '/'"),
            ("/a:/b:ro:x", "--mount"),
            ("a/b:/c", "includes invalid characters"),
            ("../../etc\u{0}:/c", "includes invalid"),
            ("~/b:/c", "includes invalid characters"),
            (":/b", "includes invalid characters"),
        ] {
            let Err(error) = parse(bad) else {
                assert!(bad.starts_with("../"), "{bad:?} is taken");
                continue;
            };
            assert!(format!("{error:#}").contains(why), "{bad:?}: {error:#}");
        }
    }
}
