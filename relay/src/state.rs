//! The relay's directory: identity, state, and what `init` was told.

use crate::paths::Paths;
use shadowmesh_control::{Exit, Problem};
use shadowmesh_crypto::secret::Secret;
use shadowmesh_host::store::{Dir, Origin, StoreError, View};
use shadowmesh_identity::{HostPort, NodeId, RelayUrl, Seed};
use shadowmesh_relay_core::Durable;
use std::net::SocketAddr;
use zeroize::Zeroizing;

const IDENTITY: &str = "identity";
const STATE: &str = "state";
const PLACE: &str = "place";

/// What `init` was told: where clients reach the relay, and where it listens.
#[derive(serde::Serialize, serde::Deserialize)]
struct Place {
    public: String,
    listen: Vec<SocketAddr>,
}

/// Everything that is read from the directory.
pub struct Loaded {
    pub seed: Seed,
    pub id: NodeId,
    pub durable: Durable,
    pub public: HostPort,
    pub listen: Vec<SocketAddr>,
}

impl Loaded {
    /// The relay's URL, with a token or without.
    pub fn url(&self, token: Option<Secret<16>>) -> RelayUrl {
        RelayUrl { address: self.public.clone(), relay: self.id, token }
    }
}

/// A store's error as a problem.
pub fn stored(error: &StoreError) -> Problem {
    match error {
        StoreError::Permission { .. } => Problem::new(Exit::NotPermitted, error.to_string())
            .fix("Run it as root (sudo), or as the relay's user."),
        StoreError::Locked { .. } => Problem::failed(error.to_string()),
        StoreError::DiskFull(_) => Problem::failed(error.to_string()).fix("Make room, then try again."),
        _ => Problem::failed(error.to_string()),
    }
}

/// Is there a relay already?
pub fn exists(paths: &Paths) -> Result<bool, Problem> {
    let there = View::new(&paths.state).read(IDENTITY).map_err(|e| stored(&e))?;
    Ok(there.is_some())
}

/// Writes a new relay's files; the identity comes last, since it is what makes the directory a relay's.
pub fn create(
    dir: &Dir,
    seed: &Seed,
    durable: &Durable,
    public: &HostPort,
    listen: Vec<SocketAddr>,
) -> Result<(), Problem> {
    let place = Place { public: public.to_string(), listen };
    let place = serde_json::to_vec(&place).map_err(|e| Problem::failed(e.to_string()))?;
    dir.write(PLACE, &place).map_err(|e| stored(&e))?;
    dir.write(STATE, &durable.encode()).map_err(|e| stored(&e))?;
    dir.write(IDENTITY, seed.secret().expose()).map_err(|e| stored(&e))
}

/// Saves the state; `forget`: a secret in the version before has ended.
pub fn save(dir: &Dir, state: &[u8], forget: bool) -> Result<(), StoreError> {
    dir.write(STATE, state)?;
    if forget { dir.forget_backup(STATE) } else { Ok(()) }
}

/// Reads a relay.
pub fn load(paths: &Paths) -> Result<Loaded, Problem> {
    let view = View::new(&paths.state);
    let shown = paths.state.display();
    let none = || {
        Problem::failed(format!("there is no relay in {shown} yet"))
            .fix("Make one:  shadowmesh-relay init --public <host name or address>")
    };
    let damaged =
        |name: &str| Problem::failed(format!("{shown}/{name} is damaged, and so is the version before it"));
    let read = |name: &str| view.read(name).map_err(|e| stored(&e));

    let identity = Zeroizing::new(read(IDENTITY)?.ok_or_else(none)?.bytes);
    let seed = Seed::new(Secret::new(identity.as_slice().try_into().map_err(|_| damaged(IDENTITY))?));
    let key =
        seed.relay_identity().map_err(|e| Problem::failed(format!("the relay's key cannot be used: {e}")))?;
    let id = NodeId::of(key.public());

    let state = read(STATE)?.ok_or_else(|| damaged(STATE))?;
    let origin = state.origin;
    let mut durable = Durable::parse(&Zeroizing::new(state.bytes)).map_err(|_| damaged(STATE))?;
    if origin == Origin::Backup {
        durable.restored_from_backup();
    }
    let place = read(PLACE)?.ok_or_else(|| damaged(PLACE))?;
    let place: Place = serde_json::from_slice(&place.bytes).map_err(|_| damaged(PLACE))?;
    let public = place.public.parse().map_err(|_| damaged(PLACE))?;
    Ok(Loaded { seed, id, durable, public, listen: place.listen })
}
