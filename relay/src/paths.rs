//! Where things are: the system's places, or all of it in one directory (`SHADOWMESH_DIR`), for tests and for people
//! without root.

use std::path::PathBuf;

/// The relay's places.
pub struct Paths {
    /// Identity and state.
    pub state: PathBuf,
    /// Optional configuration.
    pub config: PathBuf,
    /// These are the system's own: a unit may be started.
    pub system: bool,
}

impl Paths {
    /// `state`: as the command line says.
    pub fn new(state: Option<PathBuf>) -> Self {
        let dir = std::env::var_os("SHADOWMESH_DIR").filter(|d| !d.is_empty()).map(PathBuf::from);
        let system = state.is_none() && dir.is_none();
        let (in_dir, config) = match dir {
            Some(d) => (d.join("relay"), d.join("relay.yaml")),
            None => (PathBuf::from("/var/lib/shadowmesh-relay"), PathBuf::from("/etc/shadowmesh/relay.yaml")),
        };
        Paths { state: state.unwrap_or(in_dir), config, system }
    }
}
