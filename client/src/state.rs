//! What outlives the process: the master seed, and for each network its genesis, facts, keys, invites and meta data.
//!
//! ```text
//! seed                     32 bytes
//! operator                 user id (text) of who may change things, besides the configuration's
//! incarnations             JSON: which identity comes next in networks that this node was revoked in
//! networks/<name>/genesis  as the network hashes it
//!                /facts    each with its length (u32) before it
//!                /keys     leaf and pseudonym keys
//!                /meta     JSON: incarnation, device name, port
//!                /invites  the book of invites
//!                /owner    NodeId and owner's secret of each relay the network was registered at
//! new/                     networks that are being made or taken away; emptied at the start
//! ```
//! Files are replaced atomically and checked when read; one that is damaged is an error, and nothing is overwritten.

use serde::{Deserialize, Serialize};
use shadowmesh_control::{Exit, Problem};
use shadowmesh_crypto::Secret;
use shadowmesh_host::store::{Dir, StoreError};
use shadowmesh_identity::book::InviteBook;
use shadowmesh_identity::{Genesis, Name, NetworkId, NodeId, ParseError, Seed};
use shadowmesh_proto::{OwnKeys, SavedLeaf};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// The state directory, held by this process alone.
#[derive(Debug, Clone)]
pub struct State {
    dir: Dir,
    networks: Dir,
    new: Dir,
}

/// What a network is begun with.
#[derive(Debug)]
pub struct NewNetwork {
    /// The network.
    pub genesis: Genesis,
    /// Facts, the own certificate among them.
    pub facts: Vec<Vec<u8>>,
    /// Meta data.
    pub meta: Meta,
    /// Owner's secrets, by relay.
    pub owners: Vec<(NodeId, Secret<32>)>,
}

/// What is neither fact nor secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meta {
    /// Which identity of the seed this node has in the network.
    pub incarnation: u32,
    /// This node's name in the network.
    pub device: String,
    /// The UDP port that was chosen; 0: none yet.
    pub port: u16,
    /// Whether it is to be up.
    pub up: bool,
    /// The number of the root key, if the network was made here.
    pub root: Option<u32>,
}

/// The files of one network.
#[derive(Debug, Clone)]
pub struct NetworkState {
    dir: Dir,
    name: Name,
}

/// A network as stored.
pub struct Saved {
    /// The network.
    pub genesis: Genesis,
    /// Facts.
    pub facts: Vec<Vec<u8>>,
    /// Own keys.
    pub keys: OwnKeys,
    /// Owner secrets, by relay.
    pub owners: Vec<(NodeId, Secret<32>)>,
    /// Invites made here.
    pub invites: InviteBook,
    /// Meta data.
    pub meta: Meta,
}

/// A store's error, as people see it.
pub fn problem(error: &StoreError) -> Problem {
    let exit = match error {
        StoreError::Permission { .. } => Exit::NotPermitted,
        _ => Exit::Failed,
    };
    let p = Problem::new(exit, error.to_string());
    match error {
        StoreError::Damaged(_) => p
            .fix("Nothing was overwritten. Put a copy from a backup there,")
            .fix("or take the network anew: move its directory away and join again."),
        StoreError::Locked { .. } => p.fix("Stop it first:  sudo shadowmesh down"),
        StoreError::Permission { .. } => p.fix("Run it as root:  sudo shadowmesh …"),
        _ => p,
    }
}

fn malformed(path: &Path, error: &dyn std::fmt::Display) -> Problem {
    Problem::failed(format!("state file {} is not understood: {error}", path.display()))
        .fix("It may be of a newer version. Nothing was overwritten.")
}

impl State {
    /// Opens the directory, made if need be, and clears away what was left half done.
    ///
    /// # Errors
    ///
    /// [`Problem`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, Problem> {
        let open = || -> Result<State, StoreError> {
            let dir = Dir::open(path)?;
            Ok(State { networks: dir.sub("networks")?, new: dir.sub("new")?, dir })
        };
        let state = open().map_err(|e| problem(&e))?;
        for entry in std::fs::read_dir(state.new.path()).into_iter().flatten().flatten() {
            std::fs::remove_dir_all(entry.path())
                .map_err(|e| Problem::failed(format!("{} cannot be removed: {e}", entry.path().display())))?;
        }
        Ok(state)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The master seed, if there is one.
    ///
    /// # Errors
    ///
    /// [`Problem`], also when there is a file that is no seed.
    pub fn seed(&self) -> Result<Option<Seed>, Problem> {
        let Some(stored) = self.dir.read("seed").map_err(|e| problem(&e))? else { return Ok(None) };
        let bytes = Zeroizing::new(stored.bytes);
        let bytes: [u8; 32] = bytes
            .as_slice()
            .try_into()
            .map_err(|_| malformed(&self.path().join("seed"), &"a seed has 32 bytes"))?;
        Ok(Some(Seed::new(Secret::new(bytes))))
    }

    /// The master seed; drawn and stored when there is none. A seed that cannot be read is never replaced.
    ///
    /// # Errors
    ///
    /// [`Problem`].
    pub fn seed_or_new(&self) -> Result<Seed, Problem> {
        if let Some(seed) = self.seed()? {
            return Ok(seed);
        }
        if !self.network_names()?.is_empty() {
            return Err(Problem::failed(format!(
                "{} is missing, and there are networks made from it",
                self.path().join("seed").display()
            ))
            .fix("Restore it:  shadowmesh identity restore"));
        }
        let seed = Seed::random();
        self.dir.write("seed", seed.secret().expose()).map_err(|e| problem(&e))?;
        Ok(seed)
    }

    /// Stores a master seed where there is none.
    ///
    /// # Errors
    ///
    /// [`Problem`], also when there is one.
    pub fn store_seed(&self, seed: &Seed) -> Result<(), Problem> {
        if self.seed()?.is_some() {
            return Err(Problem::failed(
                "this machine has a master seed already, and it is never overwritten",
            ));
        }
        self.dir.write("seed", seed.secret().expose()).map_err(|e| problem(&e))
    }

    /// Which identity of the seed comes next in a network: after a revocation, another one.
    ///
    /// # Errors
    ///
    /// [`Problem`].
    pub fn incarnation(&self, network: &NetworkId) -> Result<u32, Problem> {
        Ok(self.incarnations()?.get(&network.to_string()).copied().unwrap_or(0))
    }

    /// Remembers that number.
    ///
    /// # Errors
    ///
    /// [`Problem`].
    pub fn set_incarnation(&self, network: &NetworkId, next: u32) -> Result<(), Problem> {
        let mut all = self.incarnations()?;
        all.insert(network.to_string(), next);
        let bytes = serde_json::to_vec(&all).unwrap_or_default();
        self.dir.write("incarnations", &bytes).map_err(|e| problem(&e))
    }

    fn incarnations(&self) -> Result<BTreeMap<String, u32>, Problem> {
        match self.dir.read("incarnations").map_err(|e| problem(&e))? {
            Some(stored) => serde_json::from_slice(&stored.bytes)
                .map_err(|e| malformed(&self.path().join("incarnations"), &e)),
            None => Ok(BTreeMap::new()),
        }
    }

    /// Who may change things besides root, as the first network's maker.
    ///
    /// # Errors
    ///
    /// [`Problem`].
    pub fn operator(&self) -> Result<Option<u32>, Problem> {
        let stored = self.dir.read("operator").map_err(|e| problem(&e))?;
        Ok(stored.and_then(|s| String::from_utf8(s.bytes).ok()?.trim().parse().ok()))
    }

    /// Remembers who that is.
    ///
    /// # Errors
    ///
    /// [`Problem`].
    pub fn set_operator(&self, uid: u32) -> Result<(), Problem> {
        self.dir.write("operator", uid.to_string().as_bytes()).map_err(|e| problem(&e))
    }

    /// The networks' names, sorted.
    ///
    /// # Errors
    ///
    /// [`Problem`].
    pub fn network_names(&self) -> Result<Vec<Name>, Problem> {
        let path = self.networks.path();
        let unreadable =
            |e: std::io::Error| Problem::failed(format!("{} cannot be read: {e}", path.display()));
        let mut names: Vec<Name> = vec![];
        for entry in std::fs::read_dir(path).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                names.extend(entry.file_name().to_str().and_then(|n| n.parse().ok()));
            }
        }
        names.sort();
        Ok(names)
    }

    /// The files of a network, which must exist.
    ///
    /// # Errors
    ///
    /// [`Problem`].
    pub fn network(&self, name: &Name) -> Result<NetworkState, Problem> {
        let dir = self.networks.sub(name.as_str()).map_err(|e| problem(&e))?;
        Ok(NetworkState { dir, name: name.clone() })
    }

    /// A name for a network here: what it is called, or that with a number where the name is taken.
    ///
    /// # Errors
    ///
    /// [`Problem`].
    pub fn free_name(&self, wanted: &Name) -> Result<Name, Problem> {
        let taken = self.network_names()?;
        let numbered = (2..100).map(|n| {
            let stem: String = wanted.as_str().chars().take(60).collect();
            format!("{}-{n}", stem.trim_end_matches('-')).parse()
        });
        std::iter::once(Ok(wanted.clone()))
            .chain(numbered)
            .flatten()
            .find(|n| !taken.contains(n))
            .ok_or_else(|| Problem::failed(format!("there are too many networks called `{wanted}` here")))
    }

    /// Adds a network: all of it, or nothing.
    ///
    /// # Errors
    ///
    /// [`Problem`].
    pub fn add_network(&self, name: &Name, network: &NewNetwork) -> Result<NetworkState, Problem> {
        let to = self.networks.path().join(name.as_str());
        if to.exists() {
            return Err(Problem::failed(format!("there is a network called `{name}` here already"))
                .fix("See it:  shadowmesh network show"));
        }
        let write = || -> Result<PathBuf, StoreError> {
            let dir = self.new.sub(name.as_str())?;
            dir.write("genesis", &network.genesis.encode())?;
            dir.write("facts", &encode_facts(network.facts.iter().map(Vec::as_slice)))?;
            dir.write("meta", &network.meta.encode())?;
            if !network.owners.is_empty() {
                dir.write("owner", &encode_owners(&network.owners))?;
            }
            Ok(dir.path().to_owned())
        };
        let from = write().map_err(|e| problem(&e))?;
        self.rename(&from, &to)?;
        self.network(name)
    }

    /// Forgets a network; the seed stays.
    ///
    /// # Errors
    ///
    /// [`Problem`].
    pub fn remove_network(&self, name: &Name) -> Result<(), Problem> {
        let away = self.new.path().join(name.as_str());
        let _left_by_a_failure = std::fs::remove_dir_all(&away);
        self.rename(&self.networks.path().join(name.as_str()), &away)?;
        std::fs::remove_dir_all(&away)
            .map_err(|e| Problem::failed(format!("{} cannot be removed: {e}", away.display())))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), Problem> {
        let sync = |path: &Path| std::fs::File::open(path)?.sync_all();
        std::fs::rename(from, to)
            .and_then(|()| sync(self.networks.path()))
            .and_then(|()| sync(self.new.path()))
            .map_err(|e| Problem::failed(format!("{} could not be put in place: {e}", to.display())))
    }
}

impl NetworkState {
    /// The network's name here.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Reads all of it.
    ///
    /// # Errors
    ///
    /// [`Problem`]: a file is missing, damaged, or not understood.
    pub fn load(&self) -> Result<Saved, Problem> {
        let needed = |name: &str| {
            let stored = self.dir.read(name).map_err(|e| problem(&e))?;
            stored.map(|s| Zeroizing::new(s.bytes)).ok_or_else(|| {
                Problem::failed(format!("state file {} is missing", self.dir.path().join(name).display()))
                    .fix("Put a copy from a backup there, or take the network anew: move its directory away and join again.")
            })
        };
        let optional = |name: &str| {
            let stored = self.dir.read(name).map_err(|e| problem(&e))?;
            Ok::<_, Problem>(stored.map(|s| Zeroizing::new(s.bytes)))
        };
        let bad = |name: &str, e: &dyn std::fmt::Display| malformed(&self.dir.path().join(name), e);
        let genesis = Genesis::parse(&needed("genesis")?).map_err(|e| bad("genesis", &e))?;
        let facts = decode_facts(&needed("facts")?).map_err(|e| bad("facts", &e))?;
        let meta = serde_json::from_slice(&needed("meta")?).map_err(|e| bad("meta", &e))?;
        let keys = optional("keys")?.map(|b| decode_keys(&b).map_err(|e| bad("keys", &e)));
        let invites = optional("invites")?.map(|b| InviteBook::decode(&b).map_err(|e| bad("invites", &e)));
        let owners = optional("owner")?.map(|b| decode_owners(&b).map_err(|e| bad("owner", &e)));
        Ok(Saved {
            owners: owners.transpose()?.unwrap_or_default(),
            genesis,
            facts,
            keys: keys.transpose()?.unwrap_or_default(),
            invites: invites.transpose()?.unwrap_or_default(),
            meta,
        })
    }

    /// Stores facts; durable when it returns.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub fn save_facts<'a>(&self, facts: impl Iterator<Item = &'a [u8]>) -> Result<(), StoreError> {
        self.dir.write("facts", &encode_facts(facts))
    }

    /// Stores keys; durable when it returns. The version before is removed: keys that were erased stay erased.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub fn save_keys(&self, keys: &OwnKeys) -> Result<(), StoreError> {
        self.dir.write("keys", &encode_keys(keys))?;
        self.dir.forget_backup("keys")
    }

    /// Stores the book of invites; durable when it returns.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub fn save_invites(&self, book: &InviteBook) -> Result<(), StoreError> {
        self.dir.write("invites", &book.encode())
    }

    /// Stores meta data.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub fn save_meta(&self, meta: &Meta) -> Result<(), StoreError> {
        self.dir.write("meta", &meta.encode())
    }
}

impl Meta {
    fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

fn encode_facts<'a>(facts: impl Iterator<Item = &'a [u8]>) -> Zeroizing<Vec<u8>> {
    let mut out = Zeroizing::new(vec![]);
    for fact in facts {
        out.extend_from_slice(&(fact.len() as u32).to_be_bytes());
        out.extend_from_slice(fact);
    }
    out
}

fn decode_facts(mut bytes: &[u8]) -> Result<Vec<Vec<u8>>, ParseError> {
    let mut facts = vec![];
    while !bytes.is_empty() {
        facts.push(take_long(&mut bytes)?.to_vec());
    }
    Ok(facts)
}

fn encode_owners(owners: &[(NodeId, Secret<32>)]) -> Zeroizing<Vec<u8>> {
    let mut out = Zeroizing::new(Vec::with_capacity(owners.len() * 64));
    for (relay, secret) in owners {
        out.extend_from_slice(&relay.0);
        out.extend_from_slice(secret.expose());
    }
    out
}

fn decode_owners(mut bytes: &[u8]) -> Result<Vec<(NodeId, Secret<32>)>, ParseError> {
    let mut owners = vec![];
    while !bytes.is_empty() {
        owners.push((NodeId(take(&mut bytes)?), Secret::new(take(&mut bytes)?)));
    }
    Ok(owners)
}

const KEYS_VERSION: u8 = 1;

/// Version (u8); leaves (u16), each: hash, end (u64), key (u32 length); pseudonyms (u16), each: relay, key (u32 length).
fn encode_keys(keys: &OwnKeys) -> Zeroizing<Vec<u8>> {
    let size = keys.leaves.iter().map(|l| l.key.len() + 44).sum::<usize>()
        + keys.pseudonyms.iter().map(|(_, k)| k.len() + 36).sum::<usize>()
        + 5;
    // All the room at once: growing would leave copies of keys behind.
    let mut out = Zeroizing::new(Vec::with_capacity(size));
    out.push(KEYS_VERSION);
    out.extend_from_slice(&(keys.leaves.len() as u16).to_be_bytes());
    for leaf in &keys.leaves {
        out.extend_from_slice(&leaf.leaf);
        out.extend_from_slice(&leaf.not_after.to_be_bytes());
        out.extend_from_slice(&(leaf.key.len() as u32).to_be_bytes());
        out.extend_from_slice(&leaf.key);
    }
    out.extend_from_slice(&(keys.pseudonyms.len() as u16).to_be_bytes());
    for (relay, key) in &keys.pseudonyms {
        out.extend_from_slice(relay);
        out.extend_from_slice(&(key.len() as u32).to_be_bytes());
        out.extend_from_slice(key);
    }
    out
}

fn decode_keys(mut bytes: &[u8]) -> Result<OwnKeys, ParseError> {
    let b = &mut bytes;
    let [version] = take(b)?;
    if version != KEYS_VERSION {
        return Err(ParseError::Invalid("it was written by a newer version"));
    }
    let mut keys = OwnKeys::default();
    for _ in 0..u16::from_be_bytes(take(b)?) {
        let (leaf, not_after) = (take(b)?, u64::from_be_bytes(take(b)?));
        keys.leaves.push(SavedLeaf { leaf, not_after, key: Zeroizing::new(take_long(b)?.to_vec()) });
    }
    for _ in 0..u16::from_be_bytes(take(b)?) {
        keys.pseudonyms.push((take(b)?, Zeroizing::new(take_long(b)?.to_vec())));
    }
    if b.is_empty() { Ok(keys) } else { Err(ParseError::Trailing) }
}

const SHORT: ParseError = ParseError::Invalid("it ends too early");

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], ParseError> {
    let (head, rest) = bytes.split_first_chunk::<N>().ok_or(SHORT)?;
    *bytes = rest;
    Ok(*head)
}

fn take_long<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], ParseError> {
    let len = u32::from_be_bytes(take(bytes)?) as usize;
    let (head, rest) = bytes.split_at_checked(len).ok_or(SHORT)?;
    *bytes = rest;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(test: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("sm-state-{test}-{}", std::process::id()));
        let _old = std::fs::remove_dir_all(&path);
        path
    }

    fn network(seed: &Seed) -> NewNetwork {
        let genesis = Genesis {
            name: "home".parse().unwrap(),
            root: seed.root_key(0).unwrap().public().clone(),
            created: 7,
            nonce: [1; 16],
            subnet4: ("10.83.0.0".parse().unwrap(), 16),
        };
        let meta = Meta { incarnation: 0, device: "laptop".into(), port: 0, up: true, root: Some(0) };
        let owners = vec![(NodeId([1; 32]), Secret::new([2; 32]))];
        NewNetwork { genesis, facts: vec![vec![1, 2, 3], vec![], vec![4]], meta, owners }
    }

    #[test]
    fn networks_are_stored_listed_and_removed() {
        let path = directory("networks");
        let state = State::open(&path).unwrap();
        let seed = state.seed_or_new().unwrap();
        assert_eq!(state.seed_or_new().unwrap().secret(), seed.secret());
        let home: Name = "home".parse().unwrap();
        let files = state.add_network(&home, &network(&seed)).unwrap();
        assert!(state.add_network(&home, &network(&seed)).unwrap_err().what.contains("already"));
        assert_eq!(state.free_name(&home).unwrap().as_str(), "home-2");
        let keys = OwnKeys {
            leaves: vec![SavedLeaf { leaf: [9; 32], not_after: 77, key: Zeroizing::new(vec![5; 40]) }],
            pseudonyms: vec![([3; 32], Zeroizing::new(vec![6; 50]))],
        };
        files.save_keys(&keys).unwrap();
        drop((state, files));

        // Half done by a crash: gone at the next start.
        std::fs::create_dir_all(path.join("new/other")).unwrap();
        let state = State::open(&path).unwrap();
        assert!(!path.join("new/other").exists());
        assert_eq!(state.network_names().unwrap(), std::slice::from_ref(&home));
        let saved = state.network(&home).unwrap().load().unwrap();
        assert_eq!(saved.facts, network(&seed).facts);
        assert_eq!(saved.meta, network(&seed).meta);
        assert_eq!(saved.owners, network(&seed).owners);
        assert!(decode_owners(&[0; 65]).is_err());
        assert_eq!((saved.keys.leaves[0].leaf, saved.keys.leaves[0].not_after), ([9; 32], 77));
        assert_eq!(*saved.keys.pseudonyms[0].1, vec![6; 50]);
        state.remove_network(&home).unwrap();
        assert_eq!(state.network_names().unwrap(), []);
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn what_is_damaged_is_an_error_and_stays() {
        let path = directory("damaged");
        let state = State::open(&path).unwrap();
        let seed = state.seed_or_new().unwrap();
        let home: Name = "home".parse().unwrap();
        let files = state.add_network(&home, &network(&seed)).unwrap();
        let facts = path.join("networks/home/facts");
        std::fs::write(&facts, b"rubbish").unwrap();
        let said = files.load().err().unwrap().to_string();
        assert!(said.contains("facts is damaged") && said.contains("Nothing was overwritten"), "{said}");
        assert_eq!(std::fs::read(&facts).unwrap(), b"rubbish");
        std::fs::remove_file(path.join("networks/home/genesis")).unwrap();
        assert!(files.load().err().unwrap().what.contains("genesis is missing"));
        // A seed that is gone is never replaced while there are networks made from it.
        std::fs::remove_file(path.join("seed")).unwrap();
        assert!(state.seed_or_new().unwrap_err().what.contains("is missing"));
        drop((state, files));
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn any_bytes_are_keys_or_an_error() {
        let good = encode_keys(&OwnKeys::default());
        assert!(decode_keys(&good).is_ok() && decode_keys(&[&good[..], &[0]].concat()).is_err());
        for len in 0..good.len() {
            assert!(decode_keys(&good[..len]).is_err());
        }
        assert!(decode_keys(&[1, 0, 1, 0]).is_err() && decode_keys(&[2, 0, 0, 0, 0]).is_err());
        assert!(decode_facts(&[0, 0, 0, 9, 1]).is_err());
    }
}
