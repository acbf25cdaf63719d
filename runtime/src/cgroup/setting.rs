//! A value to be written to a control file, and what to do when the kernel will not take it.

use std::borrow::Cow;
use std::path::Path;

use rustix::io::Errno;

use super::{Error, Result, file};

/// One control file and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    /// The controller it belongs to.
    pub(super) controller: Cow<'static, str>,
    /// File name in the cgroup's directory.
    pub(super) file: Cow<'static, str>,
    /// What is written.
    pub(super) value: String,
    /// What to do on the failures that are to be expected.
    pub(super) otherwise: Otherwise,
}

/// See [`Setting::otherwise`]. Failures not named here are errors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Otherwise {
    /// Every failure is an error.
    Fail,
    /// EINVAL: written again after all others, because the kernel checks it against one of them.
    Later,
    /// ENOENT: passed over; this kernel does not have the file and nothing is lost.
    Skip,
    /// ENOENT: another file and value take its place.
    Instead(&'static str, String),
}

impl Setting {
    pub(super) fn new(
        controller: &'static str,
        file: impl Into<Cow<'static, str>>,
        value: impl ToString,
    ) -> Self {
        Self {
            controller: controller.into(),
            file: file.into(),
            value: value.to_string(),
            otherwise: Otherwise::Fail,
        }
    }

    pub(super) fn or(mut self, otherwise: Otherwise) -> Self {
        self.otherwise = otherwise;
        self
    }
}

/// Writes settings in their order, those that came too early once more at the end.
pub(super) fn apply<'a>(
    directory: &Path,
    settings: impl IntoIterator<Item = &'a Setting>,
) -> Result<()> {
    let mut later = Vec::new();
    for setting in settings {
        let path = directory.join(&*setting.file);
        let Err(errno) = file::write_raw(&path, &setting.value) else {
            continue;
        };
        match (&setting.otherwise, errno) {
            (Otherwise::Later, Errno::INVAL) => later.push(setting),
            (Otherwise::Skip, Errno::NOENT) => {}
            (Otherwise::Instead(name, value), Errno::NOENT) => {
                file::write(&directory.join(name), value)?;
            }
            _ => return Err(explain(directory, setting, errno)),
        }
    }
    for setting in later {
        file::write_raw(&directory.join(&*setting.file), &setting.value)
            .map_err(|errno| explain(directory, setting, errno))?;
    }
    Ok(())
}

/// Says why, where the errno alone does not.
fn explain(directory: &Path, setting: &Setting, source: Errno) -> Error {
    let path = directory.join(&*setting.file);
    if source == Errno::BUSY && setting.file == "memory.limit_in_bytes" {
        let number = |name| file::read_number(&directory.join(name)).ok().flatten();
        return Error::MemoryInUse {
            limit: setting.value.clone(),
            usage: number("memory.usage_in_bytes").unwrap_or(0),
            peak: number("memory.max_usage_in_bytes").unwrap_or(0),
        };
    }
    if matches!(source, Errno::NOENT | Errno::ACCESS | Errno::PERM) {
        let enabled = file::read_raw(&directory.join("cgroup.controllers"));
        if let Ok(enabled) = enabled
            && setting.controller != "cgroup"
            && !enabled
                .split_whitespace()
                .any(|name| name == setting.controller)
        {
            return Error::ControllerMissing {
                controller: setting.controller.clone().into_owned(),
                file: setting.file.clone().into_owned(),
            };
        }
    }
    Error::Write {
        path,
        value: setting.value.clone(),
        source,
    }
}
