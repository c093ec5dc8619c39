//! What bounds a relay. Defaults in one place.

use shadowmesh_crypto::aead::Suite;
use std::time::Duration;

/// What a relay allows. Numbers are per relay unless said otherwise.
#[derive(Debug, Clone)]
pub struct Config {
    /// Anybody may register a network, without a token.
    pub open: bool,
    /// Cipher suites of sessions with clients, the preferred first.
    pub suites: Vec<Suite>,
    /// Networks registered.
    pub max_networks: usize,
    /// Clients, those whose first packet has not come included.
    pub max_clients: usize,
    /// Clients whose first packet has not come yet.
    pub max_pending: usize,
    /// Clients of one network.
    pub max_clients_per_network: usize,
    /// Clients from one IPv4 address or one IPv6 /56.
    pub max_clients_per_prefix: usize,
    /// Anonymous clients: joiners, and who registers a network.
    pub max_anonymous: usize,
    /// Anonymous clients from one IPv4 address or one IPv6 /56.
    pub max_anonymous_per_prefix: usize,
    /// Open locators of one client: as many as it can keep invites.
    pub max_locators_per_client: usize,
    /// Open locators of one network.
    pub max_locators_per_network: usize,
    /// Handshakes a second from one IPv4 address or one IPv6 /56.
    pub handshake_rate: f64,
    /// Handshakes a second from everybody, above which a puzzle is asked for.
    pub puzzle_above: u32,
    /// Bytes a second that one client may send; `None`: no limit.
    pub client_rate: Option<u64>,
    /// Bytes a second that the clients of one network may send together; `None`: no limit.
    pub network_rate: Option<u64>,
    /// Bytes a second that one anonymous client may send, or be sent.
    pub anonymous_rate: u64,
    /// A client that is not heard for so long is gone.
    pub idle: Duration,
    /// Sessions begun under an access secret that has been rotated end so long after the rotation: members learn the
    /// new secret meanwhile, perhaps by this relay.
    pub rotation_grace: Duration,
    /// A former access secret opens a session for so long, in which current clients can be asked for the new one.
    pub former_lifetime: Duration,
    /// Bytes a second that such a client may send.
    pub former_rate: u64,
}

impl Default for Config {
    fn default() -> Self {
        let preferred = Suite::preferred();
        let mut suites = Suite::ALL.to_vec();
        suites.sort_by_key(|s| *s != preferred);
        Config {
            open: false,
            suites,
            max_networks: 10_000,
            max_clients: 100_000,
            max_pending: 4096,
            max_clients_per_network: 10_000,
            max_clients_per_prefix: 1024,
            max_anonymous: 4096,
            max_anonymous_per_prefix: 64,
            max_locators_per_client: 1024,
            max_locators_per_network: 4096,
            handshake_rate: 20.0,
            puzzle_above: 500,
            client_rate: None,
            network_rate: None,
            anonymous_rate: 1 << 20,
            idle: Duration::from_secs(90),
            rotation_grace: Duration::from_secs(60),
            former_lifetime: Duration::from_secs(30 * 86_400),
            former_rate: 128 << 10,
        }
    }
}
