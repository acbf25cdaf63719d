//! `cp`: files into a container and out of it.

use std::io::{IsTerminal, Read};
use std::os::fd::AsFd;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use qengine::container::copy::{self, End, Options, copy, host_root, pack, unpack, with_root};
use qengine::container::find::Handle;

use super::Context;

/// Copy files between a container and the host
#[derive(Debug, Args)]
#[command(
    override_usage = "qengine cp [OPTIONS] CONTAINER:SRC DEST|-\n       qengine cp [OPTIONS] SRC|- CONTAINER:DEST",
    after_help = "\
A directory is copied with all that is in it: into DEST if that is a directory, else as DEST. DIR/. stands for what is in
DIR. `-` stands for a tar archive on standard input or output. What a container gets, and what comes out of it, belongs
to root, unless --archive says to keep owners.

Examples:
  qengine cp web:/etc/nginx/nginx.conf .
  qengine cp ./site/. web:/usr/share/nginx/html
  qengine cp web:/var/log - | tar tv"
)]
pub(crate) struct Cp {
    /// Keep users and groups as they are
    #[arg(short, long)]
    archive: bool,
    /// Copy what SRC leads to, if it is a symbolic link
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Accepted for docker's sake: nothing is said anyway
    #[arg(short, long)]
    quiet: bool,
    /// What to copy
    #[arg(value_name = "SRC")]
    source: String,
    /// Where to
    #[arg(value_name = "DEST")]
    target: String,
}

impl Cp {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        let _ = self.quiet;
        let options = Options {
            follow: self.follow_link,
            archive: self.archive,
        };
        match (split(&self.source), split(&self.target)) {
            (Place::Container(..), Place::Container(..)) => {
                bail!("copying between containers is not supported")
            }
            (Place::Container(name, path), other) => {
                out_of(context, (name, path), other.host_path(), options)?;
            }
            (other, Place::Container(name, path)) => {
                into(context, other.host_path(), (name, path), options)?;
            }
            _ => bail!("must specify at least one container source"),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// One of the two arguments.
#[derive(Debug, PartialEq, Eq)]
enum Place<'a> {
    Host(&'a str),
    Container(&'a str, &'a str),
}

impl<'a> Place<'a> {
    fn host_path(&self) -> &'a str {
        match *self {
            Place::Host(path) | Place::Container(_, path) => path,
        }
    }
}

/// Docker's rule: an absolute path, one without a colon and one that begins with a dot is the host's.
fn split(argument: &str) -> Place<'_> {
    match argument.split_once(':') {
        Some((name, path))
            if !argument.starts_with('/') && !name.starts_with('.') && !name.is_empty() =>
        {
            Place::Container(name, path)
        }
        _ => Place::Host(argument),
    }
}

fn out_of(
    context: &Context,
    (name, path): (&str, &str),
    target: &str,
    options: Options,
) -> Result<()> {
    let handle = Handle::find(&context.store, name)?;
    if path.is_empty() {
        bail!("container source path can not be empty");
    }
    if target == "-" {
        let out = std::io::stdout();
        if out.is_terminal() {
            bail!("cowardly refusing to save to a terminal: use a file or a pipe");
        }
        return in_container(context, &handle, |root| {
            pack(end_in(root, path, &handle), out, options.follow)
        });
    }
    let target = absolute(target)?;
    let host = host_root()?;
    in_container(context, &handle, |root| {
        copy(
            end_in(root, path, &handle),
            end_on_host(&host, &target),
            options,
        )
    })
}

fn into(
    context: &Context,
    source: &str,
    (name, path): (&str, &str),
    options: Options,
) -> Result<()> {
    let handle = Handle::find(&context.store, name)?;
    if path.is_empty() {
        bail!("container destination path can not be empty");
    }
    if source == "-" {
        let input: Box<dyn Read + Send> = Box::new(std::io::stdin());
        return in_container(context, &handle, |root| {
            unpack(input, end_in(root, path, &handle))
        });
    }
    let source = absolute(source)?;
    let host = host_root()?;
    in_container(context, &handle, |root| {
        copy(
            end_on_host(&host, &source),
            end_in(root, path, &handle),
            options,
        )
    })
}

fn in_container(
    context: &Context,
    handle: &Handle,
    work: impl FnOnce(std::os::fd::BorrowedFd<'_>) -> copy::Result<()> + Send,
) -> Result<()> {
    Ok(with_root(&context.store, &context.programs, handle, work)?)
}

fn end_in<'a>(root: std::os::fd::BorrowedFd<'a>, path: &'a str, handle: &'a Handle) -> End<'a> {
    End {
        root,
        path,
        container: Some(handle.name()),
    }
}

fn end_on_host<'a>(host: &'a std::os::fd::OwnedFd, path: &'a str) -> End<'a> {
    End {
        root: host.as_fd(),
        path,
        container: None,
    }
}

/// A path of the host from its root; what its end says (`/`, `/.`) is kept.
fn absolute(path: &str) -> Result<String> {
    if path.starts_with('/') {
        return Ok(path.to_owned());
    }
    if path.is_empty() {
        bail!("a path can not be empty");
    }
    let here = std::env::current_dir().context("cannot find the working directory")?;
    match here.to_str() {
        Some(here) => Ok(format!("{here}/{path}")),
        None => bail!("{} is not written in UTF-8", here.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_told_apart() {
        for (argument, place) in [
            ("web:/etc", Place::Container("web", "/etc")),
            ("web:etc:x", Place::Container("web", "etc:x")),
            ("./web:x", Place::Host("./web:x")),
            ("/a:b", Place::Host("/a:b")),
            ("../a:b", Place::Host("../a:b")),
            (":x", Place::Host(":x")),
            ("-", Place::Host("-")),
            ("a", Place::Host("a")),
        ] {
            assert_eq!(split(argument), place);
        }
    }
}
