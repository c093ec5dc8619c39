//! `config show`, `config check`, `version`: what needs no daemon.

use super::print::Printer;
use crate::config::Config;
use crate::paths::Paths;
use shadowmesh_control::{Exit, Problem};
use std::path::Path;

pub fn show(paths: &Paths, printer: &Printer) -> Result<(), Problem> {
    let config = Config::load(&paths.config)?;
    if printer.json {
        printer.object(&config.json());
    } else {
        printer.line(config.show().trim_end());
    }
    Ok(())
}

pub fn check(file: &Path, printer: &Printer) -> Result<(), Problem> {
    let exists = file.try_exists().unwrap_or(true);
    if !exists {
        return Err(Problem::new(Exit::Config, format!("{} is not there", file.display()))
            .fix("That is allowed: without it, the defaults hold.  shadowmesh config show"));
    }
    Config::load(file)?;
    if printer.json {
        let file = file.display().to_string();
        printer.object(
            &serde_json::json!({ "schema": "shadowmesh/config-check/1", "file": file, "right": true }),
        );
    } else {
        printer.step("right", &file.display().to_string());
    }
    Ok(())
}

pub fn version(printer: &Printer) -> Result<(), Problem> {
    let version = env!("CARGO_PKG_VERSION");
    if printer.json {
        printer.object(&serde_json::json!({ "schema": "shadowmesh/version/1", "version": version }));
    } else {
        printer.line(format!("shadowmesh {version}"));
    }
    Ok(())
}

/// Bytes as they are. A pipe that was closed is no error.
pub fn raw(bytes: &[u8]) -> Result<(), Problem> {
    use std::io::Write;
    let _closed = std::io::stdout().write_all(bytes);
    Ok(())
}
