//! What the tests came to: read from the test protocol, counted, compared.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;

/// One test's result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It passed.
    Passed,
    /// It was left out, and why.
    Skipped(String),
    /// It failed; the first thing that was said about it.
    Failed(String),
}

/// Results by test, in the order of the file.
pub(super) type Results = Vec<(String, Outcome)>;

/// Reads the test protocol.
pub(super) fn parse(text: &str) -> Results {
    let mut results: Results = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("ok ") {
            let (_, name) = rest.split_once(' ').unwrap_or(("", rest));
            results.push(match name.split_once(" # skip") {
                Some((name, why)) => (name.to_owned(), Outcome::Skipped(why.trim().to_owned())),
                None => (name.to_owned(), Outcome::Passed),
            });
        } else if let Some(rest) = line.strip_prefix("not ok ") {
            let (_, name) = rest.split_once(' ').unwrap_or(("", rest));
            results.push((name.to_owned(), Outcome::Failed(String::new())));
        } else if let Some((_, Outcome::Failed(why))) = results.last_mut()
            && (why.is_empty() || why.starts_with('('))
        {
            // First the place, then the line that failed, which says more.
            *why = line.trim_start_matches('#').trim().to_owned();
        }
    }
    results
}

/// Passed, failed, skipped.
fn counts(results: &[(String, Outcome)]) -> [usize; 3] {
    let mut counts = [0; 3];
    for (_, outcome) in results {
        counts[match outcome {
            Outcome::Passed => 0,
            Outcome::Failed(_) => 1,
            Outcome::Skipped(_) => 2,
        }] += 1;
    }
    counts
}

/// A file's results in one line, and the failures below it.
pub(super) fn one_line(file: &str, results: &[(String, Outcome)]) -> String {
    let [passed, failed, skipped] = counts(results);
    let mut text = format!("{file}: {passed} passed, {failed} failed, {skipped} skipped");
    for (name, outcome) in results {
        if let Outcome::Failed(why) = outcome {
            text.push_str(&format!("\n    FAILED {name}: {why}"));
        }
    }
    text
}

/// Where a file's results are kept.
pub(super) fn result_file(directory: &Path, file: &str) -> PathBuf {
    directory.join(file).with_extension("tap")
}

/// All results in a directory, by file.
fn read(directory: &Path) -> anyhow::Result<BTreeMap<String, Results>> {
    let mut all = BTreeMap::new();
    let entries = std::fs::read_dir(directory)
        .with_context(|| format!("read the results in {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "tap") {
            let name = crate::base_name(&path.with_extension(""));
            all.insert(name, parse(&std::fs::read_to_string(&path)?));
        }
    }
    Ok(all)
}

/// Prints the sum of all results there are; fails when a test failed that is not known to.
#[expect(
    clippy::print_stdout,
    reason = "what the user of a command line tool reads"
)]
pub(super) fn conclude(directory: &Path, known: Option<&Path>) -> anyhow::Result<ExitCode> {
    let known = match known {
        Some(path) => std::fs::read_to_string(path).context("the list of known failures")?,
        None => String::new(),
    };
    let all = read(directory)?;
    let results: Results = all.values().flatten().cloned().collect();
    let [passed, failed, skipped] = counts(&results);
    println!(
        "in {}: {passed} passed, {failed} failed, {skipped} skipped",
        directory.display()
    );
    let mut code = ExitCode::SUCCESS;
    for (file, results) in &all {
        for (name, outcome) in results {
            let line = format!("{file}: {name}");
            let is_known = known.lines().any(|known| known == line);
            match outcome {
                Outcome::Failed(_) if !is_known => {
                    println!("FAILED, not known to: {line}");
                    code = ExitCode::FAILURE;
                }
                Outcome::Passed if is_known => println!("passed, but known to fail: {line}"),
                _ => {}
            }
        }
    }
    Ok(code)
}

/// Prints results of several runs side by side: a table in Markdown, the tests in which they differ or fail, and the skips
/// of the first.
#[expect(
    clippy::print_stdout,
    reason = "what the user of a command line tool reads"
)]
pub(super) fn compare(directories: &[PathBuf]) -> anyhow::Result<()> {
    let runs: Vec<_> = directories
        .iter()
        .map(|directory| read(directory))
        .collect::<anyhow::Result<_>>()?;
    let titles = directories
        .iter()
        .map(|directory| crate::base_name(directory));
    println!("| file | {} |", titles.collect::<Vec<_>>().join(" | "));
    println!("| --- {}|", "| --- ".repeat(runs.len()));
    let files: std::collections::BTreeSet<&String> = runs.iter().flat_map(BTreeMap::keys).collect();
    let none = Results::new();
    for file in &files {
        let cells = runs.iter().map(|run| {
            let [passed, failed, skipped] = counts(run.get(*file).unwrap_or(&none));
            format!("{passed} / {failed} / {skipped}")
        });
        println!("| {file} | {} |", cells.collect::<Vec<_>>().join(" | "));
    }
    let sums = runs.iter().map(|run| {
        let results: Results = run.values().flatten().cloned().collect();
        let [passed, failed, skipped] = counts(&results);
        format!("{passed} / {failed} / {skipped}")
    });
    println!("| **all** | {} |", sums.collect::<Vec<_>>().join(" | "));
    for (title, run) in directories.iter().zip(&runs) {
        println!("\n{}:", crate::base_name(title));
        for (file, results) in run {
            for (name, outcome) in results {
                match outcome {
                    Outcome::Failed(why) => {
                        println!("- failed: {file}: {name}: `{}`", why.replace('`', ""))
                    }
                    Outcome::Skipped(why) => println!("- skipped: {file}: {name} ({why})"),
                    Outcome::Passed => {}
                }
            }
        }
    }
    Ok(())
}
