//! `login` and `logout`: credentials for registries.

use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use qengine::image::Access;
use qengine::image::registry::login::{known_user, login, logout, logout_all};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use crate::output::say;

/// Docker Hub.
const DEFAULT: &str = "docker.io";

/// Log in to a registry
#[derive(Debug, Args)]
#[command(after_help = "\
The credentials are tried, and kept in docker's config.json (DOCKER_CONFIG, or ~/.docker), or by the helper named there.

  qengine login -u heron registry.example.org
  pass show registry | qengine login -u heron --password-stdin registry.example.org")]
pub(crate) struct Login {
    /// User name
    #[arg(short, long, value_name = "NAME")]
    username: Option<String>,
    /// Password; anybody on this machine can read it in the list of processes
    #[arg(
        short,
        long,
        value_name = "PASSWORD",
        conflicts_with = "password_stdin"
    )]
    password: Option<String>,
    /// Read the password from standard input
    #[arg(long, requires = "username")]
    password_stdin: bool,
    /// Print the user name that is logged in, and do nothing
    #[arg(long)]
    get_login: bool,
    #[command(flatten)]
    place: Place,
}

/// Log out from a registry
#[derive(Debug, Args)]
pub(crate) struct Logout {
    /// Log out everywhere
    #[arg(short, long, conflicts_with = "registry")]
    all: bool,
    #[command(flatten)]
    place: Place,
}

/// Where, and by which files.
#[derive(Debug, Args)]
struct Place {
    /// File of credentials instead of docker's usual one
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
    /// Insist on https with a valid certificate; false allows any certificate, and http
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    tls_verify: Option<bool>,
    /// Directory of certificate authorities (*.crt) to trust
    #[arg(long, value_name = "DIR")]
    cert_dir: Option<PathBuf>,
    /// The registry: HOST[:PORT]; Docker Hub when left out
    #[arg(value_name = "REGISTRY")]
    registry: Option<String>,
}

impl Place {
    fn registry(&self) -> &str {
        self.registry.as_deref().unwrap_or(DEFAULT)
    }

    fn access(&self) -> Access {
        Access {
            tls_verify: self.tls_verify,
            cert_dir: self.cert_dir.clone(),
            credentials: None,
            auth_file: self.authfile.clone(),
        }
    }
}

impl Login {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let registry = self.place.registry();
        let access = self.place.access();
        if self.get_login {
            return match known_user(registry, &access)? {
                Some(user) => {
                    say(format_args!("{user}"))?;
                    Ok(ExitCode::SUCCESS)
                }
                None => bail!("not logged in to {registry}"),
            };
        }
        let user = match &self.username {
            Some(user) => user.clone(),
            None => prompt("Username: ", true)?,
        };
        let password = match &self.password {
            Some(password) => {
                eprintln!(
                    "WARNING: --password can be read in the list of processes; use --password-stdin"
                );
                password.clone()
            }
            None if self.password_stdin => {
                let mut text = String::new();
                io::stdin().read_to_string(&mut text)?;
                text.trim_end_matches(['\n', '\r']).to_owned()
            }
            None => prompt("Password: ", false)?,
        };
        if user.is_empty() || password.is_empty() {
            bail!("user name and password must not be empty");
        }
        let access = Access {
            credentials: Some((user, password)),
            ..access
        };
        login(registry, &access)?;
        say(format_args!("Login Succeeded"))?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Logout {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let access = self.place.access();
        if self.all {
            for registry in logout_all(&access)? {
                say(format_args!("Removing login credentials for {registry}"))?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        let registry = self.place.registry();
        match logout(registry, &access)? {
            true => say(format_args!("Removing login credentials for {registry}"))?,
            false => say(format_args!("Not logged in to {registry}"))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Asks on the terminal; a password is not shown while it is typed.
fn prompt(question: &str, echo: bool) -> Result<String> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        bail!(
            "cannot ask for user name and password: standard input is no terminal; use -u and --password-stdin"
        );
    }
    eprint!("{question}");
    io::stderr().flush()?;
    let before = tcgetattr(&stdin).context("cannot read the terminal's settings")?;
    if !echo {
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&stdin, OptionalActions::Flush, &hidden).context("cannot hide the password")?;
    }
    let mut line = String::new();
    let read = stdin.lock().read_line(&mut line);
    if !echo {
        let _ = tcsetattr(&stdin, OptionalActions::Flush, &before);
        eprintln!();
    }
    read?;
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}
