//! The answering side: stateless up to a good cookie, bounded after it.
//!
//! Order of work [P-ORDER]: HELLO's MAC, then the rate limit, then CHALLENGE (nothing is kept); RESPONSE's cookie in each
//! fragment, then reassembly (bounded), then the rate limit of KEM work, then one decapsulation, then what the caller
//! thinks of the credential, then the two encapsulations. A repeated RESPONSE gets the same bytes and no work.

use super::fragments::{Pieces, Reassembly};
use super::initiator::{access_mac, pseudonym_id};
use super::transcript::{H1, Role, SessionKeys, Stage1, hello_hash};
use super::{Contact, Limits, Source, cookie::CookieJar};
use crate::{Rng, Time};
use shadowmesh_crypto::aead::{Key, Suite};
use shadowmesh_crypto::kdf::{self, Hash};
use shadowmesh_crypto::kem;
use shadowmesh_crypto::secret::Secret;
use shadowmesh_wire::handshake::*;
use shadowmesh_wire::{DropReason, PacketType, SAFE_DATAGRAM, VERSION};
use std::collections::HashMap;
use std::time::Duration;

const REASSEMBLY_LIFETIME: Duration = Duration::from_secs(2);
const ASKED_LIFETIME: Duration = Duration::from_secs(5);
const ANSWERED_LIFETIME: Duration = Duration::from_secs(10);

/// Most that a responder holds for handshakes at once. The default is a node's.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// RESPONSEs under reassembly: 4 KB each, 2 s.
    pub reassembly: usize,
    /// Handshakes that wait for what NEED_CERT asked: 5 s each; of a member at most 32 KB, of a pseudonym 5 KB.
    pub asked: usize,
    /// Answers kept for repeats: 3.4 KB each, 10 s.
    pub answered: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds { reassembly: 256, asked: 128, answered: 1024 }
    }
}

type Name = (Source, Sid);

/// One thing that this responder may be taken for: itself, or an invite it gave.
pub struct Local<'a> {
    /// How it is addressed.
    pub contact: &'a Contact,
    /// Its NodeId.
    pub node: [u8; 32],
    /// Its leaves, the newest first: hash and secret key.
    pub leaves: &'a [(Hash, std::sync::Arc<kem::SecretKey>)],
    /// What LEAF_REQUEST pulls.
    pub bundle: &'a [u8],
    /// Credentials that it takes.
    pub kinds: &'a [CredentialKind],
}

/// What came of a packet.
pub enum Incoming {
    /// Nothing to do yet.
    Pending,
    /// Send these to the source.
    Reply(Vec<Vec<u8>>),
    /// A credential is on the table: look it up, then [`Responder::finish`], or [`Responder::ask`] for what it hashes.
    Opened(Box<Opened>),
    /// The initiator sent what it was asked for: check it, then [`Responder::resume`].
    Certificates(Asked),
}

/// A RESPONSE that opened. The identity in it is only claimed: nothing may be acted on before the session's first
/// packet opens.
pub struct Opened {
    /// Where it came from.
    pub source: Source,
    /// The initiator's id for it.
    pub sid: Sid,
    /// Index into the `locals` it was for.
    pub local: usize,
    /// What is shown.
    pub kind: CredentialKind,
    /// Member: hashes of certificate and leaf. Pseudonym: hash of the key, tag, MAC. Else zeros.
    pub credential: [u8; CREDENTIAL],
    suite: Suite,
    stage1: Stage1,
    sealed: [u8; CREDENTIAL + TAG],
    ephemeral: Box<[u8; KEM]>,
    /// Hashes of RESPONSE's fragments: a repeat has the same.
    fragments: Vec<Hash>,
}

impl Opened {
    /// Does the pseudonym's MAC hold under this access secret?
    pub fn access_holds(&self, access: &Secret<32>) -> bool {
        let (id, rest) = self.credential.split_at(32);
        let mut key = [0; 32];
        key.copy_from_slice(id);
        kdf::ct_eq(&access_mac(access, &self.stage1.h1, &key), &rest[16..])
    }

    /// The tag of a pseudonym's network.
    pub fn tag(&self) -> [u8; 16] {
        let mut tag = [0; 16];
        tag.copy_from_slice(&self.credential[32..48]);
        tag
    }
}

/// The bytes that an initiator sent after NEED_CERT.
pub struct Asked {
    /// Names the handshake for [`Responder::resume`].
    pub source: Source,
    /// The same.
    pub sid: Sid,
    /// Certificate, leaf and chain of a member, or a pseudonym's key.
    pub bytes: Vec<u8>,
}

struct Waiting {
    since: Time,
    opened: Box<Opened>,
    parts: Option<Pieces>,
    seq: u8,
    with_caller: bool,
}

struct Answer {
    since: Time,
    fragments: Vec<Hash>,
    datagrams: Vec<Vec<u8>>,
}

/// Answers openings.
pub struct Responder {
    jar: CookieJar,
    hellos: Limits,
    work: Limits,
    reassembly: Reassembly<Name>,
    asked: HashMap<Name, Waiting>,
    answered: HashMap<Name, Answer>,
    suites: Vec<Suite>,
    /// Bits of the puzzle that CHALLENGE asks for; set by the caller under load.
    pub puzzle: u8,
    /// Decapsulations since the start, those of RESPONSEs that then did not open included: what load is judged by.
    pub decapsulations: u64,
    bounds: Bounds,
}

impl Responder {
    /// `suites` in order of preference; `rate` handshakes a second for each source prefix.
    pub fn new(suites: Vec<Suite>, rate: f64, bounds: Bounds, now: Time, rng: &mut Rng) -> Self {
        Responder {
            jar: CookieJar::new(now, rng),
            hellos: Limits::new(rng.bytes(), rate * 4.0, rate * 16.0),
            work: Limits::new(rng.bytes(), rate, rate * 4.0),
            reassembly: Reassembly::new(REASSEMBLY_LIFETIME, bounds.reassembly),
            asked: HashMap::new(),
            answered: HashMap::new(),
            suites,
            puzzle: 0,
            decapsulations: 0,
            bounds,
        }
    }

    /// Takes a HELLO, RESPONSE, CERT or LEAF_REQUEST.
    ///
    /// # Errors
    /// Why it was dropped.
    pub fn handle(
        &mut self,
        now: Time,
        source: Source,
        packet: &[u8],
        locals: &[Local<'_>],
        rng: &mut Rng,
    ) -> Result<Incoming, DropReason> {
        match packet.first().and_then(|b| PacketType::from_byte(*b)) {
            Some(PacketType::Hello) => self.on_hello(now, source, &Hello::parse(packet)?, locals, rng),
            Some(PacketType::Response) => self.on_response(now, source, packet, locals, rng),
            Some(PacketType::Cert) => self.on_cert(source, packet),
            Some(PacketType::LeafRequest) => {
                self.on_leaf_request(now, source, &LeafRequest::parse(packet)?, locals, rng)
            }
            _ => Err(DropReason::BadHandshake),
        }
    }

    fn on_hello(
        &mut self,
        now: Time,
        source: Source,
        hello: &Hello,
        locals: &[Local<'_>],
        rng: &mut Rng,
    ) -> Result<Incoming, DropReason> {
        let local = &locals[addressed(hello, locals)?];
        if !self.hellos.allow(now, &source) {
            return Err(DropReason::RateLimited);
        }
        let (version, suite) = negotiate(hello, &self.suites)?;
        let choice = Choice { version, suite: suite as u8, puzzle: self.puzzle, epoch: 0, cookie: [0; 16] };
        Ok(Incoming::Reply(vec![self.jar.challenge(now, &source, local.contact, hello, choice, rng)]))
    }

    fn on_leaf_request(
        &mut self,
        now: Time,
        source: Source,
        request: &LeafRequest,
        locals: &[Local<'_>],
        rng: &mut Rng,
    ) -> Result<Incoming, DropReason> {
        let nonce_r = self.jar.check(now, &source, &request.header, rng)?;
        if hello_hash(&request.hello) != request.header.hello_hash {
            return Err(DropReason::BadHandshake);
        }
        let hello = Hello::parse_core(&request.hello)?;
        let local = &locals[addressed(&hello, locals)?];
        let mut parts = local.bundle.chunks(PART);
        let count = parts.len().min(MAX_PARTS) as u8;
        // A part past the end: the initiator did not know how many there are.
        let Some(part) = parts.nth(usize::from(request.part)) else { return Ok(Incoming::Pending) };
        let header =
            ReplyHeader { packet: PacketType::LeafReply, index: request.part, count, sid: hello.sid };
        let key = Key::new(Suite::ChaCha20Poly1305, &local.contact.leaf_key(&hello.nonce, &nonce_r));
        let mut v = header.emit().to_vec();
        v.extend(key.seal_vec(u64::from(request.part), &header.emit(), part));
        Ok(Incoming::Reply(vec![v]))
    }

    fn on_response(
        &mut self,
        now: Time,
        source: Source,
        packet: &[u8],
        locals: &[Local<'_>],
        rng: &mut Rng,
    ) -> Result<Incoming, DropReason> {
        let (header, piece) = CookieHeader::parse(packet)?;
        let nonce_r = self.jar.check(now, &source, &header, rng)?;
        let name = (source, header.sid);
        let digest = |bytes: &[u8]| kdf::hash(kdf::Label::HandshakeHello, &[bytes, &nonce_r]);
        let index = usize::from(header.index);
        let repeats = |fragments: &[Hash]| fragments.get(index) == Some(&digest(piece));
        // A repeated fragment gets its like: one datagram for one, without reassembly and without work. [P-AMPLIFY]
        if let Some(answer) = self.answered.get(&name)
            && repeats(&answer.fragments)
        {
            return Ok(Incoming::Reply(answer.datagrams.get(index).cloned().into_iter().collect()));
        }
        if let Some(waiting) = self.asked.get_mut(&name)
            && repeats(&waiting.opened.fragments)
        {
            let reply =
                (!waiting.with_caller && index == 0 && waiting.seq < u8::MAX).then(|| need_cert(waiting));
            return Ok(Incoming::Reply(reply.into_iter().collect()));
        }
        let pieces = self
            .reassembly
            .add(now, name, header.index, header.count, piece)
            .map_err(|()| DropReason::OverLimit)?;
        let Some(pieces) = pieces else { return Ok(Incoming::Pending) };
        let fragments = pieces.parts().map(digest).collect();
        let body = pieces.whole().unwrap_or_default();
        if !self.work.allow(now, &source) {
            return Err(DropReason::RateLimited);
        }
        let response = Response::parse(&body)?;
        if hello_hash(&response.hello) != header.hello_hash {
            return Err(DropReason::BadHandshake);
        }
        let hello = Hello::parse_core(&response.hello)?;
        let local_index = addressed(&hello, locals)?;
        let local = &locals[local_index];
        if hello.sid != header.sid || !local.kinds.contains(&hello.kind) {
            return Err(DropReason::BadHandshake);
        }
        // The cookie binds the choice; that it was made from this HELLO is checked again, not trusted.
        let (version, suite) = negotiate(&hello, &self.suites)?;
        if (version, suite as u8) != (header.choice.version, header.choice.suite) {
            return Err(DropReason::BadSuite);
        }
        let (_, leaf) = local
            .leaves
            .iter()
            .find(|(hash, _)| *hash == response.leaf_hash)
            .ok_or(DropReason::BadHandshake)?;
        let h1 = H1 {
            version,
            suite,
            kind: hello.kind,
            profile: &local.contact.profile,
            hello: &header.hello_hash,
            nonce_r: &nonce_r,
            responder: &local.node,
            leaf: &response.leaf_hash,
            ephemeral: &response.ephemeral[..],
            ct1: &response.ct1[..],
        }
        .hash();
        self.decapsulations += 1;
        let ss1 = leaf.decapsulate(&response.ct1).map_err(|_| DropReason::BadHandshake)?;
        let stage1 = Stage1::new(h1, &ss1, local.contact.mix.as_ref());
        let credential = stage1
            .response_key()
            .open_vec(0, &h1, &response.credential)
            .map_err(|_| DropReason::BadTag)?
            .try_into()
            .map_err(|_| DropReason::BadHandshake)?;
        Ok(Incoming::Opened(Box::new(Opened {
            source,
            sid: hello.sid,
            local: local_index,
            kind: hello.kind,
            credential,
            suite,
            stage1,
            sealed: response.credential,
            ephemeral: response.ephemeral,
            fragments,
        })))
    }

    /// The credential is of someone unknown: NEED_CERT, to be sent to the source.
    ///
    /// # Errors
    /// `OverLimit` when too many wait already.
    pub fn ask(&mut self, now: Time, opened: Box<Opened>) -> Result<Vec<u8>, DropReason> {
        let name = (opened.source, opened.sid);
        self.expire(now);
        if self.asked.len() >= self.bounds.asked {
            return Err(DropReason::OverLimit);
        }
        let mut waiting = Waiting { since: now, opened, parts: None, seq: 0, with_caller: false };
        let packet = need_cert(&mut waiting);
        self.asked.insert(name, waiting);
        Ok(packet)
    }

    fn on_cert(&mut self, source: Source, packet: &[u8]) -> Result<Incoming, DropReason> {
        let (header, sealed) = ReplyHeader::parse(packet)?;
        let waiting = self.asked.get_mut(&(source, header.sid)).ok_or(DropReason::UnknownHandshake)?;
        if waiting.with_caller {
            return Ok(Incoming::Pending);
        }
        // A pseudonym has nothing to show but its key.
        let most = if waiting.opened.kind == CredentialKind::Member { MAX_PARTS } else { KEM.div_ceil(PART) };
        if usize::from(header.count) > most {
            return Err(DropReason::BadHandshake);
        }
        let plain = waiting
            .opened
            .stage1
            .cert_key()
            .open_vec(u64::from(header.index), &header.emit(), sealed)
            .map_err(|_| DropReason::BadTag)?;
        let parts = waiting.parts.get_or_insert_with(|| Pieces::new(header.count));
        if parts.count() != usize::from(header.count) {
            return Err(DropReason::BadHandshake);
        }
        parts.add(header.index, &plain);
        let Some(bytes) = parts.whole() else { return Ok(Incoming::Pending) };
        waiting.with_caller = true;
        Ok(Incoming::Certificates(Asked { source, sid: header.sid, bytes }))
    }

    /// The caller has checked what was asked for, and goes on with it; `None` when it was too slow.
    pub fn resume(&mut self, source: Source, sid: Sid) -> Option<Box<Opened>> {
        self.asked.remove(&(source, sid)).map(|w| w.opened)
    }

    /// Answers: two encapsulations. `identity` is what stands for the initiator in h2; `key` its static KEM key (none
    /// for an anonymous one). The datagrams are kept for repeats.
    ///
    /// # Errors
    /// The KEM refuses a key, or too many answers are kept.
    pub fn finish(
        &mut self,
        now: Time,
        opened: Box<Opened>,
        key: Option<&kem::PublicKey>,
        identity: &[&[u8]],
        established: &Established,
    ) -> Result<(Vec<Vec<u8>>, SessionKeys), DropReason> {
        self.expire(now);
        if self.answered.len() >= self.bounds.answered {
            return Err(DropReason::OverLimit);
        }
        let (body, keys) = seal_established(
            &opened.stage1,
            opened.suite,
            &opened.ephemeral,
            &opened.sealed,
            key,
            identity,
            established,
            None,
        )?;
        let chunk = SAFE_DATAGRAM - REPLY_HEADER;
        let count = body.len().div_ceil(chunk) as u8;
        let datagrams: Vec<Vec<u8>> = body
            .chunks(chunk)
            .enumerate()
            .map(|(i, piece)| {
                let header =
                    ReplyHeader { packet: PacketType::Established, index: i as u8, count, sid: opened.sid };
                let mut v = header.emit().to_vec();
                v.extend_from_slice(piece);
                v
            })
            .collect();
        let answer = Answer { since: now, fragments: opened.fragments, datagrams: datagrams.clone() };
        self.answered.insert((opened.source, opened.sid), answer);
        Ok((datagrams, keys))
    }

    /// Forgets what is past its time. Called by itself before anything is added; call it now and then when idle.
    pub fn expire(&mut self, now: Time) {
        self.reassembly.expire(now);
        self.asked.retain(|_, w| now.since(w.since) < ASKED_LIFETIME);
        self.answered.retain(|_, a| now.since(a.since) < ANSWERED_LIFETIME);
    }

    /// How much is held for strangers: (under reassembly, asked, answered).
    pub fn held(&self) -> (usize, usize, usize) {
        (self.reassembly.len(), self.asked.len(), self.answered.len())
    }
}

/// Which of the locals a HELLO is for.
fn addressed(hello: &Hello, locals: &[Local<'_>]) -> Result<usize, DropReason> {
    let maced = hello.maced();
    locals.iter().position(|l| kdf::ct_eq(&l.contact.hello_mac(&maced), &hello.mac)).ok_or(DropReason::BadMac)
}

/// Highest version in common, and the first of `suites` that was offered.
fn negotiate(hello: &Hello, suites: &[Suite]) -> Result<(u8, Suite), DropReason> {
    if hello.version_min > VERSION || hello.version_max < VERSION {
        return Err(DropReason::BadVersion);
    }
    let suite =
        suites.iter().find(|s| hello.suites & super::suite_mask(&[**s]) != 0).ok_or(DropReason::BadSuite)?;
    Ok((VERSION, *suite))
}

fn need_cert(w: &mut Waiting) -> Vec<u8> {
    let missing = w.parts.as_ref().map_or(u32::MAX, Pieces::missing);
    let (seq, sid) = (w.seq, w.opened.sid);
    w.seq = w.seq.saturating_add(1);
    let key = w.opened.stage1.need_cert_key();
    let sealed = key.seal_vec(u64::from(seq), &NeedCert::header(seq, &sid), &missing.to_be_bytes());
    let mut fixed = [0; 4 + TAG];
    fixed.copy_from_slice(&sealed);
    NeedCert { seq, sid, sealed: fixed }.emit()
}

/// Body of an ESTABLISHED, of an opening or of a rekey: ct2, ct3, confirmation.
#[allow(clippy::too_many_arguments)]
pub(crate) fn seal_established(
    stage1: &Stage1,
    suite: Suite,
    ephemeral: &[u8; KEM],
    sealed_credential: &[u8],
    key: Option<&kem::PublicKey>,
    identity: &[&[u8]],
    established: &Established,
    exporter: Option<&Secret<32>>,
) -> Result<(Vec<u8>, SessionKeys), DropReason> {
    let bad = |_| DropReason::BadHandshake;
    let ephemeral = kem::PublicKey::parse(ephemeral).map_err(bad)?;
    let (ct2, ss2) = kem::encapsulate(&ephemeral).map_err(bad)?;
    let (ct3, ss3) = match key {
        Some(key) => {
            let (ct3, ss3) = kem::encapsulate(key).map_err(bad)?;
            (ct3.to_vec(), Some(ss3))
        }
        None => (vec![], None),
    };
    let stage2 = stage1.stage2(sealed_credential, identity, &ct2, &ct3, &ss2, ss3.as_ref(), exporter);
    let mut body = ct2.to_vec();
    body.extend_from_slice(&ct3);
    body.extend(stage2.confirm_key().seal_vec(0, &stage2.h2, &established.emit()));
    Ok((body, stage2.session(suite, Role::Responder)))
}

/// Does this key hash to what a pseudonym's credential names?
pub fn is_pseudonym(credential: &[u8; CREDENTIAL], key: &kem::PublicKey) -> bool {
    kdf::ct_eq(&pseudonym_id(key), &credential[..32])
}
