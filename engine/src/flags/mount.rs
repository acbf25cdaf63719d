//! `--mount`: comma separated `KEY=VALUE` fields, quoted as in CSV files.

use anyhow::{Result, anyhow, bail};
use qengine::container::create::{new_volume_name, parse_bytes};
use qengine::container::model::{MountDetails, MountedImage, Recursion, Volume, VolumeSource};
use qengine::store::Store;
use qengine::volume::check_name;

use super::volume::{absolute, destination_of};

/// What was typed, field by field.
#[derive(Debug, Default)]
struct Fields {
    kind: String,
    source: String,
    target: String,
    read_only: bool,
    read_write: bool,
    details: MountDetails,
    /// Options as `-v` has them.
    options: Vec<String>,
    /// First key of each group that was used, to tell of one that does not go with the type.
    bind: Option<String>,
    volume: Option<String>,
    tmpfs: Option<String>,
    image: Option<String>,
}

/// Reads one `--mount`.
pub(super) fn parse(store: &Store, text: &str) -> Result<Volume> {
    let wrong =
        |error: anyhow::Error| anyhow!("invalid argument {text:?} for \"--mount\" flag: {error:#}");
    let fields = fields(text).map_err(wrong)?;
    fields.volume(store).map_err(wrong)
}

fn fields(text: &str) -> Result<Fields> {
    let mut fields = Fields {
        kind: "volume".to_owned(),
        ..Fields::default()
    };
    for field in csv(text)? {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (field.as_str(), None),
        };
        fields.take(&key.to_ascii_lowercase(), value, &field)?;
    }
    Ok(fields)
}

impl Fields {
    fn take(&mut self, key: &str, value: Option<&str>, field: &str) -> Result<()> {
        match (key, value) {
            ("readonly" | "ro", value) => {
                self.read_only = boolean(key, value)?;
                self.read_write = !self.read_only;
                return Ok(());
            }
            ("rw" | "readwrite", value) => {
                self.read_write = boolean(key, value)?;
                self.read_only = !self.read_write;
                return Ok(());
            }
            ("volume-nocopy", value) => {
                self.volume.get_or_insert_with(|| key.to_owned());
                if boolean(key, value)? {
                    self.options.push("nocopy".to_owned());
                }
                return Ok(());
            }
            ("bind-nonrecursive", value) => {
                self.bind.get_or_insert_with(|| key.to_owned());
                if boolean(key, value)? {
                    self.details.recursion = Recursion::Disabled;
                }
                return Ok(());
            }
            ("u" | "chown", value) => {
                if boolean(key, value)? {
                    self.options.push("U".to_owned());
                }
                return Ok(());
            }
            _ => {}
        }
        let Some(value) = value else {
            bail!("invalid field '{field}' must be a key=value pair");
        };
        match key {
            "type" => self.kind = value.to_ascii_lowercase(),
            "source" | "src" => value.clone_into(&mut self.source),
            "target" | "destination" | "dst" => value.clone_into(&mut self.target),
            "consistency" | "relabel" => {}
            _ if key.starts_with("bind-") => {
                self.bind.get_or_insert_with(|| key.to_owned());
                self.of_bind(key, value, field)?;
            }
            _ if key.starts_with("volume-") => {
                self.volume.get_or_insert_with(|| key.to_owned());
                self.of_volume(key, value, field)?;
            }
            _ if key.starts_with("tmpfs-") => {
                self.tmpfs.get_or_insert_with(|| key.to_owned());
                self.of_tmpfs(key, value, field)?;
            }
            "image-subpath" => {
                self.image.get_or_insert_with(|| key.to_owned());
                self.details.subpath = Some(value.to_owned());
            }
            _ => bail!("unknown option '{key}' in '{field}'"),
        }
        Ok(())
    }

    fn of_bind(&mut self, key: &str, value: &str, field: &str) -> Result<()> {
        match key {
            "bind-propagation" => {
                const ALL: [&str; 6] = [
                    "shared", "rshared", "slave", "rslave", "private", "rprivate",
                ];
                if !ALL.contains(&value) {
                    bail!("invalid propagation mode: {value}");
                }
                self.options.push(value.to_owned());
            }
            "bind-recursive" => {
                self.details.recursion = match value {
                    "enabled" => Recursion::Enabled,
                    "disabled" => Recursion::Disabled,
                    "writable" => Recursion::Writable,
                    "readonly" => Recursion::Readonly,
                    _ => bail!(
                        "invalid value for {key}: {value} (must be \"enabled\", \"disabled\", \"writable\", or \"readonly\")"
                    ),
                };
            }
            _ => bail!("unknown option '{key}' in '{field}'"),
        }
        Ok(())
    }

    fn of_volume(&mut self, key: &str, value: &str, field: &str) -> Result<()> {
        let pair = value.split_once('=');
        let (name, content) = pair.unwrap_or((value, ""));
        let (name, content) = (name.to_owned(), content.to_owned());
        match key {
            "volume-subpath" => self.details.subpath = Some(value.to_owned()),
            "volume-driver" => self.details.driver = Some(value.to_owned()),
            "volume-label" => drop(self.details.labels.insert(name, content)),
            "volume-opt" => drop(self.details.driver_options.insert(name, content)),
            _ => bail!("unknown option '{key}' in '{field}'"),
        }
        Ok(())
    }

    fn of_tmpfs(&mut self, key: &str, value: &str, field: &str) -> Result<()> {
        match key {
            "tmpfs-size" => {
                let Some(size) = parse_bytes(value) else {
                    bail!("invalid value for {key}: {value}");
                };
                self.options.push(format!("size={size}"));
            }
            "tmpfs-mode" => {
                if u32::from_str_radix(value, 8).is_err() {
                    bail!("invalid value for {key}: {value}");
                }
                self.options.push(format!("mode={value}"));
            }
            _ => bail!("unknown option '{key}' in '{field}'"),
        }
        Ok(())
    }

    /// Options of one type do not go with another.
    fn check_groups(&self) -> Result<()> {
        for (kind, used) in [
            ("bind", &self.bind),
            ("volume", &self.volume),
            ("tmpfs", &self.tmpfs),
            ("image", &self.image),
        ] {
            if used.is_some() && self.kind != kind {
                bail!(
                    "cannot mix '{kind}-*' options with mount type '{}'",
                    self.kind
                );
            }
        }
        if self.details.recursion == Recursion::Readonly && !self.read_only {
            bail!(
                "option 'bind-recursive=readonly' requires 'readonly' to be specified in conjunction"
            );
        }
        if self.details.recursion == Recursion::Readonly
            && !self.options.iter().any(|option| option == "rprivate")
        {
            bail!(
                "option 'bind-recursive=readonly' requires 'bind-propagation=rprivate' to be specified in conjunction"
            );
        }
        Ok(())
    }

    fn volume(self, store: &Store) -> Result<Volume> {
        if !["bind", "volume", "tmpfs", "image"].contains(&self.kind.as_str()) {
            bail!("mount type unknown: {:?}", self.kind);
        }
        self.check_groups()?;
        let config = |why: &str| anyhow!("invalid mount config for type {:?}: {why}", self.kind);
        if self.target.is_empty() {
            bail!("target is required");
        }
        let destination = destination_of(&self.target).map_err(|why| config(&why))?;
        let source = match (self.kind.as_str(), self.source.as_str()) {
            ("tmpfs", "") => VolumeSource::Tmpfs,
            ("tmpfs", _) => return Err(config("field Source must not be specified")),
            ("volume", "") => VolumeSource::Anonymous(new_volume_name()?),
            ("volume", name) => {
                check_name(name)?;
                VolumeSource::Named(name.to_owned())
            }
            (_, "") => return Err(config("field Source must not be empty")),
            ("image", reference) => {
                let image = qengine::image::require(store, reference)?;
                VolumeSource::Image(MountedImage {
                    reference: reference.to_owned(),
                    id: image.id,
                    layers: image.layers,
                })
            }
            (_, path) => VolumeSource::Path(absolute(path)?),
        };
        let mut options = self.options;
        if self.read_only && self.kind != "tmpfs" {
            options.push("ro".to_owned());
        }
        Ok(Volume {
            read_only: self.read_only || (self.kind == "image" && !self.read_write),
            source,
            destination,
            options,
            mount: Some(self.details),
        })
    }
}

/// Go's booleans; a key alone is true.
fn boolean(key: &str, value: Option<&str>) -> Result<bool> {
    match value {
        None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(value) => bail!("invalid value for {key}: {value}"),
    }
}

/// Splits a line of a CSV file: a field in double quotes may hold commas, and `""` for a quote.
fn csv(text: &str) -> Result<Vec<String>> {
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let (field, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_field(quoted)?,
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                if rest[..end].contains('"') {
                    bail!("a bare \" in a field that is not quoted");
                }
                (rest[..end].to_owned(), &rest[end..])
            }
        };
        fields.push(field);
        match after.strip_prefix(',') {
            Some(more) => rest = more,
            None if after.is_empty() => return Ok(fields),
            None => bail!("something behind a quoted field"),
        }
    }
}

fn quoted_field(text: &str) -> Result<(String, &str)> {
    let mut field = String::new();
    let mut rest = text;
    loop {
        let Some(quote) = rest.find('"') else {
            bail!("a quoted field without an end");
        };
        field.push_str(&rest[..quote]);
        rest = &rest[quote + 1..];
        match rest.strip_prefix('"') {
            Some(more) => {
                field.push('"');
                rest = more;
            }
            None => return Ok((field, rest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Volume> {
        let directory = tempfile::tempdir()?;
        let store = Store::open(directory.path().join("a"), directory.path().join("b"))?;
        parse(&store, text)
    }

    #[test]
    fn fields_are_quoted_as_in_csv() {
        let volume = read("type=bind,\"source=/a,b\",target=/x,readonly").unwrap();
        assert_eq!(volume.source, VolumeSource::Path("/a,b".into()));
        assert!(volume.read_only);
        assert_eq!(csv("\"a\"\"b\",c").unwrap(), ["a\"b", "c"]);
        for bad in ["\"a", "a\"b", "\"a\"b"] {
            assert!(csv(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_type() {
        let named = read("src=data,dst=/x,volume-nocopy,volume-label=a=b").unwrap();
        assert_eq!(named.source, VolumeSource::Named("data".into()));
        assert!(named.has("nocopy"));
        assert_eq!(named.mount.unwrap().labels["a"], "b");
        let memory = read("type=tmpfs,destination=/x,tmpfs-size=1m,tmpfs-mode=700").unwrap();
        assert_eq!(memory.source, VolumeSource::Tmpfs);
        assert_eq!(memory.options, ["size=1048576", "mode=700"]);
        assert!(matches!(
            read("target=/x").unwrap().source,
            VolumeSource::Anonymous(_)
        ));
        assert!(!read("target=/x,ro=false").unwrap().read_only);
    }

    #[test]
    fn what_does_not_fit_is_told() {
        for (bad, why) in [
            ("type=bind,target=/x", "field Source must not be empty"),
            ("type=bind,src=/a", "target is required"),
            (
                "type=nosuch,src=/a,dst=/b",
                "mount type unknown: \"nosuch\"",
            ),
            ("src=a,dst=b", "must be absolute"),
            (
                "src=a,dst=/b,nosuch=1",
                "unknown option 'nosuch' in 'nosuch=1'",
            ),
            ("src", "invalid field 'src' must be a key=value pair"),
            ("src=a,dst=/b,ro=maybe", "invalid value for ro: maybe"),
            (
                "type=bind,src=/a,dst=/b,volume-nocopy",
                "cannot mix 'volume-*' options with mount type 'bind'",
            ),
            (
                "src=a,dst=/b,bind-propagation=rslave",
                "cannot mix 'bind-*' options with mount type 'volume'",
            ),
            (
                "type=tmpfs,src=/a,dst=/b",
                "field Source must not be specified",
            ),
            (
                "type=bind,src=/a,dst=/b,bind-recursive=readonly",
                "requires 'readonly'",
            ),
            ("src=../x,dst=/b", "includes invalid characters"),
            ("type=image,src=nosuch,dst=/b", "no such image"),
        ] {
            let error = read(bad).unwrap_err();
            assert!(format!("{error:#}").contains(why), "{bad}: {error:#}");
        }
    }
}
