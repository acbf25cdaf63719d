//! Instructions as data. Variables in them are not replaced yet.

use bundle_tools::image::Healthcheck;

use super::lines::Heredoc;

/// An instruction and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The line of the Dockerfile; 0 for a trigger of the base image.
    pub line: usize,
    /// The text as written, on one line.
    pub text: String,
    /// What it says.
    pub instruction: Instruction,
}

/// What a line says.
#[derive(Debug, Clone, PartialEq)]
pub enum Instruction {
    /// Starts a stage.
    From(From),
    /// Runs a command and keeps what it changes.
    Run(Run),
    /// Copies files of the context, another stage or another image.
    Copy(Copy),
    /// As `COPY`; unpacks archives and fetches addresses.
    Add(Copy),
    /// Environment of this and later steps, and of containers.
    Env(Vec<(String, String)>),
    /// Variables that the caller may set.
    Arg(Vec<(String, Option<String>)>),
    /// Labels.
    Label(Vec<(String, String)>),
    /// The working directory.
    Workdir(String),
    /// The user.
    User(String),
    /// The entry point.
    Entrypoint(Command),
    /// The default command.
    Cmd(Command),
    /// Ports, as `80`, `80/udp`, `8000-8010`.
    Expose(String),
    /// Directories that become volumes.
    Volume(Vec<String>),
    /// The shell of commands in shell form.
    Shell(Vec<String>),
    /// The signal that asks containers to end.
    StopSignal(String),
    /// How a container's health is checked.
    Healthcheck(Healthcheck),
    /// An instruction for builds on top of the image.
    OnBuild(String),
    /// Who made it.
    Maintainer(String),
}

/// A command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// A line for a shell.
    Shell(String),
    /// A program and its arguments.
    Exec(Vec<String>),
}

/// `FROM IMAGE [AS NAME]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct From {
    /// An image, an earlier stage, or `scratch`.
    pub image: String,
    /// The stage's name.
    pub name: Option<String>,
    /// `--platform`.
    pub platform: Option<String>,
}

/// `RUN`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// What is run.
    pub command: Command,
    /// `--network`.
    pub network: Option<String>,
    /// `--mount`s, in order.
    pub mounts: Vec<Mount>,
    /// Heredocs of the line.
    pub heredocs: Vec<Heredoc>,
}

/// What kind of files a command sees besides its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum MountKind {
    /// Files of the context, a stage or an image.
    #[default]
    Bind,
    /// A directory that is kept between builds.
    Cache,
    /// An empty directory in memory.
    Tmpfs,
    /// A secret, in a file or in a variable.
    Secret {
        /// The variable.
        env: Option<String>,
    },
}

/// What happens when two commands use a cache at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Sharing {
    /// They use the same directory.
    #[default]
    Shared,
    /// The second gets another directory.
    Private,
    /// The second waits.
    Locked,
}

/// One `RUN --mount`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mount {
    /// What it is.
    pub kind: MountKind,
    /// Where it goes; empty for a secret that is a variable alone.
    pub target: String,
    /// What is bound.
    pub source: String,
    /// The stage or image it comes from.
    pub from: Option<String>,
    /// The name of the cache or secret.
    pub id: Option<String>,
    /// Whether it can't be written; by its kind's own rule when absent.
    pub read_only: Option<bool>,
    /// A secret that has to be given.
    pub required: bool,
    /// Of a cache.
    pub sharing: Sharing,
    /// Mode of a new cache's directory, or of a secret's file.
    pub mode: Option<u32>,
    /// Owner of these.
    pub uid: u32,
    /// Group of these.
    pub gid: u32,
    /// Size of a tmpfs.
    pub size: Option<String>,
}

/// `COPY` and `ADD`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Copy {
    /// Paths or patterns; for `ADD` also addresses.
    pub sources: Vec<String>,
    /// Files whose content stands in the Dockerfile.
    pub heredocs: Vec<Heredoc>,
    /// Where they go.
    pub destination: String,
    /// `--from`: a stage or an image.
    pub from: Option<String>,
    /// `--chown`.
    pub chown: Option<String>,
    /// `--chmod`.
    pub chmod: Option<String>,
    /// `--exclude`: patterns.
    pub exclude: Vec<String>,
    /// `--parents`: keep the sources' directories.
    pub parents: bool,
    /// `--checksum` of a fetched file.
    pub checksum: Option<String>,
    /// `--unpack`: whether archives are unpacked; by the instruction's own rule when absent.
    pub unpack: Option<bool>,
}
