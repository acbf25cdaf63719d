//! `version`: of all four programs.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use qengine::system::info::{API_VERSION, VERSION, components};
use serde_json::{Value, json};

use super::Context;
use crate::output::say;
use crate::template::Template;

/// Show the versions of all programs
#[derive(Debug, Args)]
pub(crate) struct Version {
    /// json, or a template such as '{{.Server.Version}}'
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
}

impl Version {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        let components = components(&context.programs);
        let uname = rustix::system::uname();
        let kernel = uname.release().to_string_lossy();
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let Some(format) = &self.format else {
            say(format_args!("Version:      {VERSION}"))?;
            say(format_args!("API version:  {API_VERSION}"))?;
            say(format_args!("OS/Arch:      linux/{architecture}"))?;
            say(format_args!("Kernel:       {kernel}"))?;
            say(format_args!("Programs:"))?;
            for component in &components {
                let version = match component.version.as_str() {
                    "" => "not found",
                    version => version,
                };
                say(format_args!(
                    "  {:<10}  {version:<10} {}",
                    component.name, component.path
                ))?;
            }
            return Ok(ExitCode::SUCCESS);
        };
        let listed: Vec<Value> = components
            .iter()
            .map(|component| {
                json!({"Name": component.name, "Version": component.version, "Details": {"Path": component.path}})
            })
            .collect();
        // There is no daemon: the client is the server.
        let common = json!({
            "Version": VERSION,
            "ApiVersion": API_VERSION,
            "MinAPIVersion": API_VERSION,
            "Os": "linux",
            "Arch": architecture,
            "KernelVersion": kernel,
            "GitCommit": "",
            "GoVersion": "",
            "BuildTime": "",
        });
        let mut value = json!({"Client": common.clone(), "Server": common});
        value["Server"]["Components"] = listed.into();
        say(format_args!("{}", render(format, &value)?))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// One object through `--format`, where `json` is short for `{{json .}}`.
pub(super) fn render(format: &str, value: &Value) -> Result<String> {
    let text = match format.trim() {
        "json" => "{{json .}}",
        text => text,
    };
    Ok(Template::parse_escaped(text)?.render(value)?)
}
