//! Control messages: what travels inside a session besides frames, between members and between a client and its relay.
//!
//! All of them are idempotent; who asks repeats until it is answered. What is large moves by pull: the holder names a
//! blob by its hash, the other side asks for its chunks.

use crate::candidate::{ADDRESS, Candidate, MAX_CANDIDATES, Mapping, emit_address, parse_address};
use crate::{Reader, SAFE_DATAGRAM, WireError, Writer, data, handshake};
use std::net::SocketAddr;

/// Hash of a blob, or of a fact.
pub type Hash = [u8; 32];

/// Largest control message, its type byte included: a datagram of [`SAFE_DATAGRAM`] carries it.
pub const MAX_CONTROL: usize = SAFE_DATAGRAM - data::FRAME_OVERHEAD;
/// Bytes of a [`Control::Chunk`]'s piece, and of a rekey message's.
pub const CHUNK: usize = 1024;
/// Chunks of one blob at most: 256 KiB.
pub const MAX_CHUNKS: u16 = 256;
/// Hashes in one message at most.
pub const MAX_HASHES: usize = 32;
/// Buckets that a roster is summed up in.
pub const BUCKETS: usize = 64;
/// Longest text in a refusal, bytes.
pub const MAX_TEXT: usize = 200;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Status {
    Ok = 0,
    Unknown = 1,
    Used = 2,
    Expired = 3,
    Refused = 4,
    Busy = 5,
    /// Wait and ask again: the work is under way.
    Pending = 6,
    /// The identity that asks was revoked.
    Revoked = 7,
}

impl Status {
    fn parse(b: u8) -> Result<Self, WireError> {
        use Status::*;
        [Ok, Unknown, Used, Expired, Refused, Busy, Pending, Revoked]
            .into_iter()
            .find(|s| *s as u8 == b)
            .ok_or(WireError::Malformed)
    }
}

/// A control message. The first byte is its type, in the order below, from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// I to R: the session stands; the indexes I receives on. Repeated until R is heard.
    Confirm {
        /// As ESTABLISHED gave it.
        sid_r: [u8; 8],
        /// Of this session: one more than any that either side's process has had with the other. 0 at a relay.
        generation: u32,
        /// Indexes that I receives on.
        lanes: [u32; handshake::LANES],
        /// I's wall clock, Unix seconds.
        wall: u64,
    },
    /// A rekey's RESPONSE, in pieces.
    RekeyResponse(Piece),
    /// A rekey's ESTABLISHED, in pieces.
    RekeyEstablished(Piece),
    /// The roster as this side has it.
    RosterState {
        /// Digest over all facts.
        digest: Hash,
        /// Greatest sequence number of any fact of the root or an admin: tells who is behind.
        version: u64,
    },
    /// Answer to a differing [`Control::RosterState`]: a digest for each bucket.
    RosterBuckets(Box<[u64; BUCKETS]>),
    /// Answer to a differing bucket: the facts in it.
    RosterIds {
        /// Which bucket.
        bucket: u8,
        /// Part of how many parts, from 0.
        part: (u8, u8),
        /// Hashes of facts.
        ids: Vec<Hash>,
    },
    /// New facts, just heard of.
    Have(Vec<Hash>),
    /// Asks for one chunk of a blob.
    Pull {
        /// Of the whole blob.
        hash: Hash,
        /// From 0.
        chunk: u16,
    },
    /// One chunk of a blob; all but the last are [`CHUNK`] bytes. `count` 0: not here.
    Chunk {
        /// Of the whole blob.
        hash: Hash,
        /// From 0.
        chunk: u16,
        /// Chunks in all.
        count: u16,
        /// The piece.
        bytes: Vec<u8>,
    },
    /// Relay to client, at the address it seems to have moved to.
    PathChallenge([u8; 8]),
    /// The answer.
    PathResponse([u8; 8]),
    /// Joiner to relay: who waits at this locator?
    Rendezvous(Hash),
    /// Relay to joiner.
    RendezvousReply {
        /// Ok, Unknown or Busy.
        status: Status,
        /// Where the owner is.
        owner: u64,
        /// How long this lasts, seconds.
        lifetime: u32,
    },
    /// Inviter to relay: forward to me who comes to this locator.
    OpenLocator {
        /// Derived from the invite.
        locator: Hash,
        /// Seconds; 0 closes it.
        lifetime: u32,
    },
    /// Relay to inviter: done, or not.
    LocatorReply {
        /// Which one.
        locator: Hash,
        /// Ok or Busy.
        status: Status,
    },
    /// Network's creator to relay.
    Register {
        /// Out of the relay's URL; zeros to rotate with the owner secret alone.
        token: [u8; 16],
        /// The network's tag is its hash.
        owner: [u8; 32],
        /// What members will show.
        access: [u8; 32],
    },
    /// Relay to creator.
    RegisterReply(Status),
    /// Joiner to inviter: my claim is a blob with this hash.
    Claim(Hash),
    /// Inviter to joiner: how it ended, and what to pull.
    JoinReply {
        /// Ok, Used, Expired, Refused or Pending.
        status: Status,
        /// In words, for a person.
        text: String,
        /// The bundle's hash: genesis, certificate, facts, access secrets.
        bundle: Hash,
    },
    /// This side ends the session, on purpose.
    Bye,
    /// This side refuses the other: revoked, expired. In words.
    Refused(String),
    /// Where this side may be reached. Repeated until the other has heard it.
    Candidates {
        /// Grows with each change, from 1.
        number: u32,
        /// The number of the other side's that this side has; 0: none yet.
        heard: u32,
        /// How the NAT before this side maps.
        mapping: Mapping,
        /// At most [`MAX_CANDIDATES`].
        list: Vec<Candidate>,
    },
    /// By a path that may be none: does this arrive? As long as its answer.
    ValidationRequest {
        /// Random; names the question.
        challenge: [u8; 8],
        /// Where it was sent to.
        to: SocketAddr,
    },
    /// Its answer, by the same path and to where it came from.
    ValidationResponse {
        /// As asked.
        challenge: [u8; 8],
        /// The answer's own question.
        own: [u8; 8],
        /// Where the question came from.
        seen: SocketAddr,
    },
    /// The answer to that: the path is good both ways.
    ValidationComplete {
        /// As first asked.
        challenge: [u8; 8],
        /// As asked in return.
        own: [u8; 8],
    },
    /// What this side sends without a relay is not reported any more: it goes by the relay again. So should the other's.
    PathLost,
    /// Relay to client: it is seen there now.
    Observed(SocketAddr),
    /// Client to relay: where is the client with this handle? As long as its answer.
    Locate(u64),
    /// Relay to client: from there it sends.
    Located {
        /// As asked.
        handle: u64,
        /// Where; unspecified: nobody of this network has that handle now.
        address: SocketAddr,
    },
}

/// After a [`Control::Locate`]'s handle.
const LOCATE_PADDING: usize = ADDRESS;

/// After a [`Control::ValidationRequest`]'s fields, so that its answer is no longer.
const REQUEST_PADDING: usize = 8;

/// A piece of a rekey message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The rekey's session id.
    pub sid: [u8; 8],
    /// Below `count`.
    pub index: u8,
    /// 1 to [`handshake::MAX_FRAGMENTS`].
    pub count: u8,
    /// At most [`CHUNK`] + 128 bytes.
    pub bytes: Vec<u8>,
}

/// Largest piece of a rekey message, bytes.
pub const MAX_PIECE: usize = CHUNK + 100;

impl Piece {
    fn emit(&self, w: &mut Writer<'_>) {
        w.bytes(&self.sid).u8(self.index).u8(self.count).bytes(&self.bytes);
    }

    fn parse(r: &mut Reader<'_>) -> Result<Self, WireError> {
        let (sid, index, count) = (r.array()?, r.u8()?, r.u8()?);
        if count == 0 || usize::from(count) > handshake::MAX_FRAGMENTS || index >= count {
            return Err(WireError::Malformed);
        }
        if r.remaining() > MAX_PIECE {
            return Err(WireError::TooLong);
        }
        Ok(Piece { sid, index, count, bytes: r.rest().to_vec() })
    }
}

fn emit_hashes(w: &mut Writer<'_>, hashes: &[Hash]) {
    let n = hashes.len().min(MAX_HASHES);
    w.u8(n as u8);
    for h in hashes.iter().take(n) {
        w.bytes(h);
    }
}

fn parse_hashes(r: &mut Reader<'_>) -> Result<Vec<Hash>, WireError> {
    let n = usize::from(r.u8()?);
    if n > MAX_HASHES {
        return Err(WireError::TooLong);
    }
    (0..n).map(|_| r.array()).collect()
}

fn text(r: &mut Reader<'_>) -> Result<String, WireError> {
    let bytes = r.blob(MAX_TEXT)?;
    let s = std::str::from_utf8(bytes).map_err(|_| WireError::Malformed)?;
    // It reaches a terminal: no control characters.
    if s.chars().any(char::is_control) { Err(WireError::Malformed) } else { Ok(s.to_owned()) }
}

impl Control {
    /// Appends the message.
    pub fn emit(&self, out: &mut Vec<u8>) {
        let mut w = Writer(out);
        match self {
            Control::Confirm { sid_r, generation, lanes, wall } => {
                w.u8(1).bytes(sid_r).u32(*generation);
                for lane in lanes {
                    w.u32(*lane);
                }
                w.u64(*wall);
            }
            Control::RekeyResponse(p) => p.emit(w.u8(2)),
            Control::RekeyEstablished(p) => p.emit(w.u8(3)),
            Control::RosterState { digest, version } => {
                w.u8(4).bytes(digest).u64(*version);
            }
            Control::RosterBuckets(b) => {
                w.u8(5);
                for d in b.iter() {
                    w.u64(*d);
                }
            }
            Control::RosterIds { bucket, part, ids } => {
                w.u8(6).u8(*bucket).u8(part.0).u8(part.1);
                emit_hashes(&mut w, ids);
            }
            Control::Have(ids) => emit_hashes(w.u8(7), ids),
            Control::Pull { hash, chunk } => {
                w.u8(8).bytes(hash).u16(*chunk);
            }
            Control::Chunk { hash, chunk, count, bytes } => {
                w.u8(9).bytes(hash).u16(*chunk).u16(*count).bytes(bytes);
            }
            Control::PathChallenge(c) => {
                w.u8(10).bytes(c);
            }
            Control::PathResponse(c) => {
                w.u8(11).bytes(c);
            }
            Control::Rendezvous(l) => {
                w.u8(12).bytes(l);
            }
            Control::RendezvousReply { status, owner, lifetime } => {
                w.u8(13).u8(*status as u8).u64(*owner).u32(*lifetime);
            }
            Control::OpenLocator { locator, lifetime } => {
                w.u8(14).bytes(locator).u32(*lifetime);
            }
            Control::LocatorReply { locator, status } => {
                w.u8(15).bytes(locator).u8(*status as u8);
            }
            Control::Register { token, owner, access } => {
                w.u8(16).bytes(token).bytes(owner).bytes(access);
            }
            Control::RegisterReply(status) => {
                w.u8(17).u8(*status as u8);
            }
            Control::Claim(hash) => {
                w.u8(18).bytes(hash);
            }
            Control::JoinReply { status, text, bundle } => {
                w.u8(19).u8(*status as u8).blob(text.as_bytes()).bytes(bundle);
            }
            Control::Bye => {
                w.u8(20);
            }
            Control::Refused(text) => {
                w.u8(21).blob(text.as_bytes());
            }
            Control::Candidates { number, heard, mapping, list } => {
                let n = list.len().min(MAX_CANDIDATES);
                w.u8(22).u32(*number).u32(*heard).u8(*mapping as u8).u8(n as u8);
                list.iter().take(n).for_each(|c| c.emit(&mut w));
            }
            Control::ValidationRequest { challenge, to } => {
                emit_address(w.u8(23).bytes(challenge), to);
                w.zeros(REQUEST_PADDING);
            }
            Control::ValidationResponse { challenge, own, seen } => {
                emit_address(w.u8(24).bytes(challenge).bytes(own), seen);
            }
            Control::ValidationComplete { challenge, own } => {
                w.u8(25).bytes(challenge).bytes(own);
            }
            Control::PathLost => {
                w.u8(26);
            }
            Control::Observed(address) => emit_address(w.u8(27), address),
            Control::Locate(handle) => {
                w.u8(28).u64(*handle).zeros(LOCATE_PADDING);
            }
            Control::Located { handle, address } => emit_address(w.u8(29).u64(*handle), address),
        }
    }

    /// From bytes, all of them.
    pub fn parse(body: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(body);
        let out = match r.u8()? {
            1 => {
                let (sid_r, generation) = (r.array()?, r.u32()?);
                let lanes = handshake::parse_lanes(&mut r)?;
                Control::Confirm { sid_r, generation, lanes, wall: r.u64()? }
            }
            2 => Control::RekeyResponse(Piece::parse(&mut r)?),
            3 => Control::RekeyEstablished(Piece::parse(&mut r)?),
            4 => Control::RosterState { digest: r.array()?, version: r.u64()? },
            5 => {
                let mut b = Box::new([0; BUCKETS]);
                for d in b.iter_mut() {
                    *d = r.u64()?;
                }
                Control::RosterBuckets(b)
            }
            6 => {
                let bucket = r.u8()?;
                let part = (r.u8()?, r.u8()?);
                if usize::from(bucket) >= BUCKETS || part.0 >= part.1 {
                    return Err(WireError::Malformed);
                }
                Control::RosterIds { bucket, part, ids: parse_hashes(&mut r)? }
            }
            7 => Control::Have(parse_hashes(&mut r)?),
            8 => Control::Pull { hash: r.array()?, chunk: r.u16()? },
            9 => {
                let (hash, chunk, count) = (r.array()?, r.u16()?, r.u16()?);
                if count > MAX_CHUNKS || (chunk >= count && count != 0) || r.remaining() > CHUNK {
                    return Err(WireError::Malformed);
                }
                Control::Chunk { hash, chunk, count, bytes: r.rest().to_vec() }
            }
            10 => Control::PathChallenge(r.array()?),
            11 => Control::PathResponse(r.array()?),
            12 => Control::Rendezvous(r.array()?),
            13 => Control::RendezvousReply {
                status: Status::parse(r.u8()?)?,
                owner: r.u64()?,
                lifetime: r.u32()?,
            },
            14 => Control::OpenLocator { locator: r.array()?, lifetime: r.u32()? },
            15 => Control::LocatorReply { locator: r.array()?, status: Status::parse(r.u8()?)? },
            16 => Control::Register { token: r.array()?, owner: r.array()?, access: r.array()? },
            17 => Control::RegisterReply(Status::parse(r.u8()?)?),
            18 => Control::Claim(r.array()?),
            19 => Control::JoinReply {
                status: Status::parse(r.u8()?)?,
                text: text(&mut r)?,
                bundle: r.array()?,
            },
            20 => Control::Bye,
            21 => Control::Refused(text(&mut r)?),
            22 => {
                let (number, heard) = (r.u32()?, r.u32()?);
                let (mapping, n) = (Mapping::parse(r.u8()?)?, usize::from(r.u8()?));
                if n > MAX_CANDIDATES {
                    return Err(WireError::TooLong);
                }
                let list = (0..n).map(|_| Candidate::parse(&mut r)).collect::<Result<_, _>>()?;
                Control::Candidates { number, heard, mapping, list }
            }
            23 => {
                let (challenge, to) = (r.array()?, parse_address(&mut r)?);
                r.zeros(REQUEST_PADDING)?;
                Control::ValidationRequest { challenge, to }
            }
            24 => Control::ValidationResponse {
                challenge: r.array()?,
                own: r.array()?,
                seen: parse_address(&mut r)?,
            },
            25 => Control::ValidationComplete { challenge: r.array()?, own: r.array()? },
            26 => Control::PathLost,
            27 => Control::Observed(parse_address(&mut r)?),
            28 => {
                let handle = r.u64()?;
                r.zeros(LOCATE_PADDING)?;
                Control::Locate(handle)
            }
            29 => Control::Located { handle: r.u64()?, address: parse_address(&mut r)? },
            _ => return Err(WireError::Malformed),
        };
        r.finish()?;
        Ok(out)
    }
}
