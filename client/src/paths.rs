//! Where things are: the system's places, or all of them under `SHADOWMESH_DIR`.

use std::path::PathBuf;

/// Where things are.
#[derive(Debug, Clone)]
pub struct Paths {
    /// The configuration.
    pub config: PathBuf,
    /// The state directory.
    pub state: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
    /// What a daemon in the background prints.
    pub log: PathBuf,
    /// Everything was moved: no unit is started.
    pub moved: bool,
}

impl Paths {
    /// By the environment.
    pub fn from_env() -> Self {
        match std::env::var_os("SHADOWMESH_DIR").filter(|d| !d.is_empty()) {
            Some(d) => Paths::under(d.into()),
            None => Paths {
                config: "/etc/shadowmesh/config.yaml".into(),
                state: "/var/lib/shadowmesh".into(),
                socket: "/run/shadowmesh/control.sock".into(),
                log: "/var/lib/shadowmesh/daemon.log".into(),
                moved: false,
            },
        }
    }

    /// All under one directory.
    pub fn under(directory: PathBuf) -> Self {
        Paths {
            config: directory.join("config.yaml"),
            state: directory.join("state"),
            socket: directory.join("run/control.sock"),
            log: directory.join("state/daemon.log"),
            moved: true,
        }
    }
}
