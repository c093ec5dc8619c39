//! Counters of what a relay did. No name, address or handle is in them.

use shadowmesh_proto::batch::Drops;

/// What happened since the start.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Datagrams that came.
    pub datagrams_in: u64,
    /// And their bytes.
    pub bytes_in: u64,
    /// Datagrams forwarded from client to client.
    pub forwarded: u64,
    /// And their bytes.
    pub forwarded_bytes: u64,
    /// Handshakes answered, by clients with a pseudonym.
    pub handshakes_pseudonym: u64,
    /// And by such with a former access secret.
    pub handshakes_former: u64,
    /// Handshakes answered, by anonymous clients.
    pub handshakes_anonymous: u64,
    /// RESETs sent.
    pub resets: u64,
    /// STUN requests answered.
    pub stun: u64,
    /// Clients that moved to another address and proved it.
    pub rebinds: u64,
    /// Networks registered.
    pub registrations: u64,
    /// Access secrets rotated.
    pub rotations: u64,
    /// Rendezvous made.
    pub rendezvous: u64,
    /// What was dropped, by reason.
    pub drops: Drops,
}
