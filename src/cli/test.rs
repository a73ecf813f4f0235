//! `neap test`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::output::{self, Format};
use crate::model::{Error, Kind, Result};
use crate::sim::tests::{self, Named, Options, Report};

/// The largest number that Lua tells from its neighbours.
const MAX_SEED: u64 = 1 << 53;

/// Arguments.
#[derive(clap::Args)]
pub struct Args {
    /// Files, and folders with files whose names end with _test.lua
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Only tests whose name holds this
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Let this number decide all randomness; the same number gives the same run
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(..=MAX_SEED))]
    seed: Option<u64>,
    /// How long one test may take
    #[arg(long, default_value = "60s", value_name = "DURATION")]
    timeout: crate::model::units::Duration,
    /// Show what the tests print, of those that pass as well
    #[arg(long)]
    verbose: bool,
    /// List the tests and run none
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    format: output::FormatArg,
}

/// A report for machines.
#[derive(Serialize)]
struct Row<'a> {
    file: String,
    test: &'a str,
    line: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a Error>,
    #[serde(skip_serializing_if = "str::is_empty")]
    output: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    took_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    simulated: Option<crate::model::units::Duration>,
}

/// Runs the tests, one after the other; an error if one fails.
pub fn main(args: &Args) -> Result<()> {
    let cwd = std::env::current_dir().map_err(|error| Error::io("working folder", "find it", &error))?;
    let options = Options {
        filter: args.filter.clone(),
        seed: args.seed,
        timeout: args.timeout.std().max(Duration::from_millis(1)),
        cwd,
    };
    let json = args.format.format == Format::Json;
    let (mut passed, mut failed) = (0, 0);
    let mut rows = Vec::new();
    for file in tests::files(&args.paths)? {
        let shown = file.display().to_string();
        let path = std::path::absolute(&file).map_err(|error| Error::io(shown.clone(), "find it", &error))?;
        // A file that cannot be loaded is one failure; the others are run all the same.
        let found = match tests::list(&path, &options) {
            Ok(found) => found.into_iter().map(|test| (test, None)).collect(),
            Err(error) => vec![(Named::whole(), Some(error))],
        };
        if !json && !found.is_empty() {
            output::line(&shown)?;
        }
        for (test, broken) in found {
            let test = &test;
            if args.list && broken.is_none() {
                match json {
                    true => rows.push(row(&shown, test, None)?),
                    false => output::line(&format!("  {}", test.name))?,
                }
                continue;
            }
            let report = match broken {
                Some(error) => Report::broken(test, error),
                None => tests::run(&path, test, &options),
            };
            *(if report.result.is_ok() { &mut passed } else { &mut failed }) += 1;
            match json {
                true => rows.push(row(&shown, test, Some(&report))?),
                false => tell(&report, args.verbose)?,
            }
        }
    }
    if json {
        output::print(Format::Json, &rows, String::new)?;
    }
    match (args.list, passed + failed, failed) {
        (true, _, 0) => Ok(()),
        (_, 0, _) => Err(Error::not_found("tests").help("`neap test --list PATH` lists what there is")),
        _ => {
            if !json {
                output::line(&format!("{passed} passed, {failed} failed"))?;
            }
            let error = || Error::new(Kind::Failed, "tests", format!("{failed} of {} failed", passed + failed));
            if failed == 0 { Ok(()) } else { Err(error()) }
        }
    }
}

fn row(file: &str, test: &Named, report: Option<&Report>) -> Result<serde_json::Value> {
    let row = Row {
        file: file.to_owned(),
        test: &test.name,
        line: test.line,
        result: report.map(|report| if report.result.is_ok() { "passed" } else { "failed" }),
        error: report.and_then(|report| report.result.as_ref().err()),
        output: report.map_or("", |report| &report.output),
        seed: report.map(|report| report.seed),
        took_ms: report.map(|report| report.took.as_secs_f64() * 1000.0),
        simulated: report.map(|report| report.simulated),
    };
    serde_json::to_value(row).map_err(|error| Error::internal("report", error.to_string()))
}

fn tell(report: &Report, verbose: bool) -> Result<()> {
    let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let (word, colour) = if report.result.is_ok() { ("ok    ", "32") } else { ("FAILED", "31") };
    let word = if colours { format!("\x1b[{colour}m{word}\x1b[0m") } else { word.to_owned() };
    let millis = report.took.as_secs_f64() * 1000.0;
    output::line(&format!("  {word}  {} ({millis:.0} ms, {} simulated)", report.test.name, report.simulated))?;
    if verbose || report.result.is_err() {
        for line in report.output.lines() {
            output::line(&format!("    | {line}"))?;
        }
    }
    if let Err(error) = &report.result {
        for line in error.to_string().lines() {
            output::line(&format!("    {line}"))?;
        }
        output::line(&format!("    seed: {}", report.seed))?;
    }
    Ok(())
}
