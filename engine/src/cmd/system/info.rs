//! `info`: what the engine is, and what it finds on this machine.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use qengine::system::info;
use serde_json::Value;

use super::super::Context;
use super::super::images::human_size;
use super::super::version::render;
use crate::output::say;

/// Show what the engine is, and what it finds on this machine
#[derive(Debug, Args)]
pub(crate) struct Info {
    /// json, or a template such as '{{.CgroupVersion}}'
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
}

/// What is printed: a label, and the key.
const LINES: [(&str, &str); 25] = [
    ("Server version", "ServerVersion"),
    ("Containers", "Containers"),
    (" Running", "ContainersRunning"),
    (" Paused", "ContainersPaused"),
    (" Stopped", "ContainersStopped"),
    ("Images", "Images"),
    ("Storage driver", "Driver"),
    (" Root directory", "DockerRootDir"),
    (" Run directory", "RunRoot"),
    ("Logging driver", "LoggingDriver"),
    ("Cgroup driver", "CgroupDriver"),
    ("Cgroup version", "CgroupVersion"),
    ("Cgroup controllers", "CgroupControllers"),
    ("Packet filter", "FirewallBackend"),
    ("Runtime", "DefaultRuntime"),
    ("Security options", "SecurityOptions"),
    ("Kernel version", "KernelVersion"),
    ("Operating system", "OperatingSystem"),
    ("Architecture", "Architecture"),
    ("CPUs", "NCPU"),
    ("Total memory", "MemTotal"),
    ("Name", "Name"),
    ("HTTP proxy", "HttpProxy"),
    ("HTTPS proxy", "HttpsProxy"),
    ("No proxy", "NoProxy"),
];

impl Info {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        let value = info::info(&context.store, &context.programs)?;
        if let Some(format) = &self.format {
            say(format_args!("{}", render(format, &value)?))?;
            return Ok(ExitCode::SUCCESS);
        }
        for (label, key) in LINES {
            let text = match &value[key] {
                Value::Number(bytes) if key == "MemTotal" => {
                    human_size(bytes.as_u64().unwrap_or(0))
                }
                Value::String(text) => text.clone(),
                Value::Array(items) => {
                    let items: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
                    items.join(" ")
                }
                Value::Object(_) => value[key]["Driver"].as_str().unwrap_or_default().to_owned(),
                Value::Null => String::new(),
                other => other.to_string(),
            };
            if !text.is_empty() {
                say(format_args!("{label}: {text}"))?;
            }
        }
        for warning in value["Warnings"].as_array().into_iter().flatten() {
            crate::flags::warn(warning.as_str().unwrap_or_default());
        }
        Ok(ExitCode::SUCCESS)
    }
}
