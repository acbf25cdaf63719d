//! `host-check save FILE` takes stock of the host, `host-check compare FILE` fails when it is no
//! longer the same; around a whole run of the tests.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use stack_tests::host::Snapshot;
use stack_tests::wait;

fn main() -> ExitCode {
    match check() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without the backtrace: what is left behind has to be seen.
            eprintln!("host-check: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check() -> anyhow::Result<()> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["save", file] => std::fs::write(file, Snapshot::take().to_json())
            .with_context(|| format!("write {file}")),
        ["compare", file] => {
            let text = std::fs::read_to_string(file).with_context(|| format!("read {file}"))?;
            compare(&Snapshot::from_json(&text)?)
        }
        _ => bail!("usage: host-check save|compare FILE"),
    }
}

/// Fails when the host differs from `before`, also after the time a dying process may take.
fn compare(before: &Snapshot) -> anyhow::Result<()> {
    let same = || {
        Snapshot::take()
            .differences(before)
            .is_empty()
            .then_some(())
    };
    if wait::within(std::time::Duration::from_secs(5), same).is_none() {
        let differences = Snapshot::take().differences(before).join("\n");
        bail!("the host is not as before:\n{differences}");
    }
    Ok(())
}
