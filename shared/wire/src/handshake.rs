//! The handshake's packets: HELLO, CHALLENGE, RESPONSE, ESTABLISHED, NEED_CERT, CERT, LEAF_REQUEST, LEAF_REPLY.
//!
//! What is sealed stays bytes here; the bodies inside the seals are laid out below ([`Established`], [`Choice`]).
//! Every initiator packet that costs the responder anything carries the cookie in its [`CookieHeader`].

use crate::{PacketType, Reader, SAFE_DATAGRAM, VERSION, WireError, Writer};

/// AEAD tag. Bytes.
pub const TAG: usize = 16;
/// Hybrid KEM public key, and ciphertext: ML-KEM-1024 and X25519. Bytes.
pub const KEM: usize = 1600;
/// What of a HELLO is not padding. Bytes.
pub const HELLO_CORE: usize = 64;
/// Cookie header before each RESPONSE fragment and LEAF_REQUEST. Bytes.
pub const COOKIE_HEADER: usize = 72;
/// The credential inside RESPONSE, before sealing: two hashes, or hash, tag and MAC, or zeros. Bytes.
pub const CREDENTIAL: usize = 64;
/// RESPONSE's body over all its fragments. Bytes.
pub const RESPONSE_BODY: usize = HELLO_CORE + 32 + KEM + KEM + CREDENTIAL + TAG;
/// Header of an ESTABLISHED fragment, of CERT and of LEAF_REPLY. Bytes.
pub const REPLY_HEADER: usize = 12;
/// Fragments of one RESPONSE or ESTABLISHED at most.
pub const MAX_FRAGMENTS: usize = 4;
/// CERT or LEAF_REPLY datagrams at most.
pub const MAX_PARTS: usize = 24;
/// Bytes of a part of CERT or LEAF_REPLY, before sealing.
pub const PART: usize = SAFE_DATAGRAM - REPLY_HEADER - TAG;
/// Lanes that each side lists when a session begins.
pub const LANES: usize = 8;

/// Session id chosen by the initiator; names one handshake at one source.
pub type Sid = [u8; 8];

/// Credential that the initiator will show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CredentialKind {
    /// Certificate and leaf of a member.
    Member = 1,
    /// A pseudonym's KEM key and a MAC under the network's access secret (client to relay).
    Pseudonym = 2,
    /// None (rendezvous, registration).
    Anonymous = 3,
}

impl CredentialKind {
    fn from_byte(b: u8) -> Result<Self, WireError> {
        match b {
            1 => Ok(Self::Member),
            2 => Ok(Self::Pseudonym),
            3 => Ok(Self::Anonymous),
            _ => Err(WireError::Malformed),
        }
    }
}

/// Flag of HELLO: the initiator has no leaf of the responder and will pull it.
pub const FLAG_LEAF: u8 = 1;

/// HELLO, I to R, padded to [`SAFE_DATAGRAM`]. `type, version_min, version_max, suites, kind, flags, 0, 0, sid 8,
/// nonce 32, mac 16, zeros`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// Lowest version spoken.
    pub version_min: u8,
    /// Highest version spoken.
    pub version_max: u8,
    /// Bit n-1 set: suite n offered.
    pub suites: u8,
    /// Credential that will be shown.
    pub kind: CredentialKind,
    /// [`FLAG_LEAF`] or nothing.
    pub flags: u8,
    /// Chosen by I.
    pub sid: Sid,
    /// Fresh.
    pub nonce: [u8; 32],
    /// Keyed by R's NodeId (or the invite), over what comes before it.
    pub mac: [u8; 16],
}

impl Hello {
    /// What the MAC covers.
    pub fn maced(&self) -> [u8; HELLO_CORE - 16] {
        let mut out = [0; HELLO_CORE - 16];
        out.copy_from_slice(self.core().split_at(HELLO_CORE - 16).0);
        out
    }

    /// Everything but the padding: what RESPONSE repeats and the transcript hashes.
    pub fn core(&self) -> [u8; HELLO_CORE] {
        let mut v = Vec::with_capacity(HELLO_CORE);
        Writer(&mut v)
            .u8(PacketType::Hello as u8)
            .u8(self.version_min)
            .u8(self.version_max)
            .u8(self.suites)
            .u8(self.kind as u8)
            .u8(self.flags)
            .u16(0)
            .bytes(&self.sid)
            .bytes(&self.nonce)
            .bytes(&self.mac);
        let mut out = [0; HELLO_CORE];
        out.copy_from_slice(&v);
        out
    }

    /// The whole packet.
    pub fn emit(&self) -> Vec<u8> {
        let mut v = self.core().to_vec();
        v.resize(SAFE_DATAGRAM, 0);
        v
    }

    /// Parses what [`Hello::core`] gives.
    pub fn parse_core(bytes: &[u8; HELLO_CORE]) -> Result<Self, WireError> {
        let mut r = Reader::new(bytes);
        if r.u8()? != PacketType::Hello as u8 {
            return Err(WireError::Malformed);
        }
        let (version_min, version_max, suites) = (r.u8()?, r.u8()?, r.u8()?);
        let kind = CredentialKind::from_byte(r.u8()?)?;
        let flags = r.u8()?;
        r.zeros(2)?;
        if flags & !FLAG_LEAF != 0 || version_min > version_max {
            return Err(WireError::Malformed);
        }
        let hello = Hello {
            version_min,
            version_max,
            suites,
            kind,
            flags,
            sid: r.array()?,
            nonce: r.array()?,
            mac: r.array()?,
        };
        r.finish()?;
        Ok(hello)
    }

    /// Parses a datagram: exactly [`SAFE_DATAGRAM`] bytes, so that no reply is larger than its request.
    pub fn parse(datagram: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(datagram);
        let core = r.array::<HELLO_CORE>()?;
        r.zeros(SAFE_DATAGRAM - HELLO_CORE)?;
        r.finish()?;
        Self::parse_core(&core)
    }
}

/// What R chose; sealed in CHALLENGE together with the cookie. 20 B.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// Version of the handshake and session.
    pub version: u8,
    /// Suite of the session ([`Hello::suites`]'s numbering).
    pub suite: u8,
    /// Leading zero bits that the puzzle asks for; 0 when R is not under load.
    pub puzzle: u8,
    /// Which cookie key.
    pub epoch: u8,
    /// MAC over address, sid, H(HELLO) and choice.
    pub cookie: [u8; 16],
}

impl Choice {
    /// Bytes before sealing.
    pub const LEN: usize = 20;

    /// As bytes.
    pub fn emit(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        let (head, cookie) = out.split_at_mut(4);
        head.copy_from_slice(&[self.version, self.suite, self.puzzle, self.epoch]);
        cookie.copy_from_slice(&self.cookie);
        out
    }

    /// From bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(bytes);
        let c =
            Choice { version: r.u8()?, suite: r.u8()?, puzzle: r.u8()?, epoch: r.u8()?, cookie: r.array()? };
        r.finish()?;
        Ok(c)
    }
}

/// CHALLENGE, R to I. `type, 0 x 7, sid 8, nonce 16, sealed (20 + 16)`; the header is the seal's associated data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Challenge {
    /// I's.
    pub sid: Sid,
    /// R's nonce; made from the cookie key, so that R keeps nothing.
    pub nonce: [u8; 16],
    /// Sealed [`Choice`].
    pub sealed: [u8; Choice::LEN + TAG],
}

impl Challenge {
    /// Bytes of the packet.
    pub const LEN: usize = Self::HEADER + Choice::LEN + TAG;
    /// Bytes before the sealed part.
    pub const HEADER: usize = 32;

    /// The associated data.
    pub fn header(sid: &Sid, nonce: &[u8; 16]) -> [u8; Self::HEADER] {
        let mut v = Vec::with_capacity(Self::HEADER);
        Writer(&mut v).u8(PacketType::Challenge as u8).zeros(7).bytes(sid).bytes(nonce);
        let mut out = [0; Self::HEADER];
        out.copy_from_slice(&v);
        out
    }

    /// As bytes.
    pub fn emit(&self) -> Vec<u8> {
        let mut v = Self::header(&self.sid, &self.nonce).to_vec();
        v.extend_from_slice(&self.sealed);
        v
    }

    /// From bytes.
    pub fn parse(datagram: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(datagram);
        if r.u8()? != PacketType::Challenge as u8 {
            return Err(WireError::Malformed);
        }
        r.zeros(7)?;
        let c = Challenge { sid: r.array()?, nonce: r.array()?, sealed: r.array()? };
        r.finish()?;
        Ok(c)
    }
}

/// What lets R check a cookie without having kept anything; before each RESPONSE fragment and LEAF_REQUEST.
/// `type, index << 4 | count, version, suite, epoch, puzzle, 0, 0, sid 8, H(HELLO) 32, cookie 16, solution 8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CookieHeader {
    /// [`PacketType::Response`] or [`PacketType::LeafRequest`].
    pub packet: PacketType,
    /// Fragment index; part index of a LEAF_REQUEST is in its body.
    pub index: u8,
    /// Fragments in all, 1 to [`MAX_FRAGMENTS`].
    pub count: u8,
    /// R's choice and cookie, as CHALLENGE gave them.
    pub choice: Choice,
    /// I's.
    pub sid: Sid,
    /// Hash of HELLO's core.
    pub hello_hash: [u8; 32],
    /// Puzzle solution, or 0.
    pub solution: u64,
}

impl CookieHeader {
    /// Appends the header.
    pub fn emit(&self, out: &mut Vec<u8>) {
        Writer(out)
            .u8(self.packet as u8)
            .u8(self.index << 4 | self.count)
            .u8(self.choice.version)
            .u8(self.choice.suite)
            .u8(self.choice.epoch)
            .u8(self.choice.puzzle)
            .u16(0)
            .bytes(&self.sid)
            .bytes(&self.hello_hash)
            .bytes(&self.choice.cookie)
            .u64(self.solution);
    }

    /// The header and what follows it.
    pub fn parse(datagram: &[u8]) -> Result<(Self, &[u8]), WireError> {
        if datagram.len() > SAFE_DATAGRAM {
            return Err(WireError::TooLong);
        }
        let mut r = Reader::new(datagram);
        let packet = PacketType::from_byte(r.u8()?).ok_or(WireError::Malformed)?;
        if !matches!(packet, PacketType::Response | PacketType::LeafRequest) {
            return Err(WireError::Malformed);
        }
        let (index, count) = fragment_byte(r.u8()?)?;
        let (version, suite, epoch, puzzle) = (r.u8()?, r.u8()?, r.u8()?, r.u8()?);
        r.zeros(2)?;
        let (sid, hello_hash, cookie) = (r.array()?, r.array()?, r.array()?);
        let solution = r.u64()?;
        let choice = Choice { version, suite, puzzle, epoch, cookie };
        Ok((CookieHeader { packet, index, count, choice, sid, hello_hash, solution }, r.rest()))
    }
}

fn fragment_byte(b: u8) -> Result<(u8, u8), WireError> {
    let (index, count) = (b >> 4, b & 15);
    if count == 0 || usize::from(count) > MAX_FRAGMENTS || index >= count {
        return Err(WireError::Malformed);
    }
    Ok((index, count))
}

/// RESPONSE's body, once its fragments are together. [`RESPONSE_BODY`] bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// HELLO's core again.
    pub hello: [u8; HELLO_CORE],
    /// Hash of R's leaf that ct1 is for.
    pub leaf_hash: [u8; 32],
    /// I's ephemeral KEM key.
    pub ephemeral: Box<[u8; KEM]>,
    /// To R's leaf.
    pub ct1: Box<[u8; KEM]>,
    /// Sealed credential.
    pub credential: [u8; CREDENTIAL + TAG],
}

impl Response {
    /// As bytes.
    pub fn emit(&self) -> Vec<u8> {
        let mut v = Vec::with_capacity(RESPONSE_BODY);
        Writer(&mut v)
            .bytes(&self.hello)
            .bytes(&self.leaf_hash)
            .bytes(&self.ephemeral[..])
            .bytes(&self.ct1[..])
            .bytes(&self.credential);
        v
    }

    /// From bytes.
    pub fn parse(body: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(body);
        let out = Response {
            hello: r.array()?,
            leaf_hash: r.array()?,
            ephemeral: Box::new(r.array()?),
            ct1: Box::new(r.array()?),
            credential: r.array()?,
        };
        r.finish()?;
        Ok(out)
    }
}

/// Header of ESTABLISHED fragments, CERT and LEAF_REPLY: `type, index, count, 0, sid 8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyHeader {
    /// Which of the three.
    pub packet: PacketType,
    /// Index, below `count`.
    pub index: u8,
    /// 1 to [`MAX_FRAGMENTS`] or [`MAX_PARTS`].
    pub count: u8,
    /// I's.
    pub sid: Sid,
}

impl ReplyHeader {
    /// As bytes; the associated data of what is sealed behind it.
    pub fn emit(&self) -> [u8; REPLY_HEADER] {
        let mut v = Vec::with_capacity(REPLY_HEADER);
        Writer(&mut v).u8(self.packet as u8).u8(self.index).u8(self.count).u8(0).bytes(&self.sid);
        let mut out = [0; REPLY_HEADER];
        out.copy_from_slice(&v);
        out
    }

    /// The header and what follows it.
    pub fn parse(datagram: &[u8]) -> Result<(Self, &[u8]), WireError> {
        if datagram.len() > SAFE_DATAGRAM {
            return Err(WireError::TooLong);
        }
        let mut r = Reader::new(datagram);
        let packet = PacketType::from_byte(r.u8()?).ok_or(WireError::Malformed)?;
        let max = match packet {
            PacketType::Established => MAX_FRAGMENTS,
            PacketType::Cert | PacketType::LeafReply => MAX_PARTS,
            _ => return Err(WireError::Malformed),
        };
        let (index, count) = (r.u8()?, r.u8()?);
        r.zeros(1)?;
        if count == 0 || usize::from(count) > max || index >= count {
            return Err(WireError::Malformed);
        }
        let sid = r.array()?;
        Ok((ReplyHeader { packet, index, count, sid }, r.rest()))
    }
}

/// NEED_CERT, R to I: `type, seq, 0, 0, sid 8, sealed { missing u32 }`. `seq` is the seal's counter; `missing` has bit
/// n set when part n has not arrived (all ones at first).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NeedCert {
    /// The seal's counter: one for each NEED_CERT of a handshake.
    pub seq: u8,
    /// I's.
    pub sid: Sid,
    /// Sealed bit mask of missing parts.
    pub sealed: [u8; 4 + TAG],
}

impl NeedCert {
    /// Associated data.
    pub fn header(seq: u8, sid: &Sid) -> [u8; REPLY_HEADER] {
        let mut v = Vec::with_capacity(REPLY_HEADER);
        Writer(&mut v).u8(PacketType::NeedCert as u8).u8(seq).u16(0).bytes(sid);
        let mut out = [0; REPLY_HEADER];
        out.copy_from_slice(&v);
        out
    }

    /// As bytes.
    pub fn emit(&self) -> Vec<u8> {
        let mut v = Self::header(self.seq, &self.sid).to_vec();
        v.extend_from_slice(&self.sealed);
        v
    }

    /// From bytes.
    pub fn parse(datagram: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(datagram);
        if r.u8()? != PacketType::NeedCert as u8 {
            return Err(WireError::Malformed);
        }
        let seq = r.u8()?;
        r.zeros(2)?;
        let out = NeedCert { seq, sid: r.array()?, sealed: r.array()? };
        r.finish()?;
        Ok(out)
    }
}

/// LEAF_REQUEST, I to R: a [`CookieHeader`], HELLO's core, the wanted part, zeros up to [`SAFE_DATAGRAM`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeafRequest {
    /// With the cookie.
    pub header: CookieHeader,
    /// HELLO's core again.
    pub hello: [u8; HELLO_CORE],
    /// Which part, below [`MAX_PARTS`].
    pub part: u8,
}

impl LeafRequest {
    /// As bytes.
    pub fn emit(&self) -> Vec<u8> {
        let mut v = Vec::with_capacity(SAFE_DATAGRAM);
        self.header.emit(&mut v);
        Writer(&mut v).bytes(&self.hello).u8(self.part);
        v.resize(SAFE_DATAGRAM, 0);
        v
    }

    /// From bytes.
    pub fn parse(datagram: &[u8]) -> Result<Self, WireError> {
        if datagram.len() != SAFE_DATAGRAM {
            return Err(WireError::Truncated);
        }
        let (header, rest) = CookieHeader::parse(datagram)?;
        if header.packet != PacketType::LeafRequest {
            return Err(WireError::Malformed);
        }
        let mut r = Reader::new(rest);
        let (hello, part) = (r.array()?, r.u8()?);
        r.zeros(r.remaining())?;
        if usize::from(part) >= MAX_PARTS {
            return Err(WireError::Malformed);
        }
        Ok(LeafRequest { header, hello, part })
    }
}

/// What R confirms, sealed in ESTABLISHED behind the ciphertexts. [`Established::LEN`] bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Established {
    /// Session id chosen by R.
    pub sid_r: Sid,
    /// The highest generation of session that R's process has had with I; 0 when none, and at a relay.
    pub generation: u32,
    /// Indexes that R receives on, one a lane (30 bits each).
    pub lanes: [u32; LANES],
    /// Where R saw I: 16 bytes of IPv6 (or mapped IPv4) and a port; zeros by relay.
    pub observed: ([u8; 16], u16),
    /// Largest datagram that R takes in the session, bytes, without a relay header: what bounds I's search for the path's.
    pub mtu: u16,
    /// R's wall clock, Unix seconds: lets I see its skew.
    pub wall: u64,
    /// At a relay: slot, handle and reset token of this client, and what it is there; zeros between peers.
    pub relay: RelayGrant,
}

/// What a relay gives a client in ESTABLISHED.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RelayGrant {
    /// Slot to name in each relay header.
    pub slot: u32,
    /// Handle under which others reach this client.
    pub handle: u64,
    /// What a true RESET will show.
    pub reset_token: [u8; 16],
    /// The access secret that was shown is a former one: the session is narrow, to be told the current one. One byte.
    pub former: bool,
}

impl Established {
    /// Bytes before sealing.
    pub const LEN: usize = 8 + 4 + 4 * LANES + 18 + 2 + 8 + 29;

    /// As bytes.
    pub fn emit(&self) -> Vec<u8> {
        let mut v = Vec::with_capacity(Self::LEN);
        let mut w = Writer(&mut v);
        w.bytes(&self.sid_r).u32(self.generation);
        for lane in self.lanes {
            w.u32(lane);
        }
        w.bytes(&self.observed.0).u16(self.observed.1).u16(self.mtu).u64(self.wall);
        w.u32(self.relay.slot).u64(self.relay.handle).bytes(&self.relay.reset_token);
        w.u8(u8::from(self.relay.former));
        v
    }

    /// From bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(bytes);
        let (sid_r, generation) = (r.array()?, r.u32()?);
        let lanes = parse_lanes(&mut r)?;
        let out = Established {
            sid_r,
            generation,
            lanes,
            observed: (r.array()?, r.u16()?),
            mtu: r.u16()?,
            wall: r.u64()?,
            relay: RelayGrant {
                slot: r.u32()?,
                handle: r.u64()?,
                reset_token: r.array()?,
                former: match r.u8()? {
                    0 => false,
                    1 => true,
                    _ => return Err(WireError::Malformed),
                },
            },
        };
        r.finish()?;
        Ok(out)
    }
}

/// Eight lane indexes of 30 bits.
pub(crate) fn parse_lanes(r: &mut Reader<'_>) -> Result<[u32; LANES], WireError> {
    let mut lanes = [0; LANES];
    for lane in &mut lanes {
        *lane = r.u32()?;
        if *lane > crate::data::MAX_INDEX {
            return Err(WireError::Malformed);
        }
    }
    Ok(lanes)
}

/// Versions this build speaks, as HELLO states them.
pub const VERSIONS: (u8, u8) = (VERSION, VERSION);
