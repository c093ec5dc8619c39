//! One opening: HELLO, then RESPONSE, with a leaf pull between when the responder's leaf is not at hand.

use super::transcript::{H1, Role, SessionKeys, Stage1, hello_hash};
use super::{Contact, cookie, fragments::Pieces};
use crate::{Rng, Time};
use shadowmesh_crypto::aead::{Key, Suite};
use shadowmesh_crypto::kdf::{self, Hash, Label};
use shadowmesh_crypto::kem;
use shadowmesh_crypto::secret::Secret;
use shadowmesh_wire::handshake::*;
use shadowmesh_wire::{DropReason, PacketType, SAFE_DATAGRAM, VERSION};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// First repeat of a message; doubles up to [`MAX_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(250);
const MAX_WAIT: Duration = Duration::from_secs(1);
/// An opening that has not ended by then has failed.
const LIFETIME: Duration = Duration::from_secs(10);
/// CHALLENGEs answered in one opening: the first, and new ones of a responder that has restarted.
const MAX_CHALLENGES: u8 = 3;
/// LEAF_REQUESTs under way at once.
const LEAF_WINDOW: usize = 8;

/// What the initiator shows.
#[derive(Clone)]
pub enum Credential {
    /// Certificate and leaf.
    Member {
        /// Hash of the certificate's bytes.
        certificate: Hash,
        /// Hash of the leaf's bytes.
        leaf: Hash,
        /// The leaf's secret key.
        key: Arc<kem::SecretKey>,
        /// What CERT carries when the responder knows neither: certificate, leaf and chain.
        chain: Arc<[u8]>,
    },
    /// A pseudonym at a relay.
    Pseudonym {
        /// Its KEM key.
        key: Arc<kem::SecretKey>,
        /// The network's tag at that relay.
        tag: [u8; 16],
        /// The network's access secret for that relay.
        access: Arc<Secret<32>>,
    },
    /// Nothing.
    Anonymous,
}

impl Credential {
    fn kind(&self) -> CredentialKind {
        match self {
            Credential::Member { .. } => CredentialKind::Member,
            Credential::Pseudonym { .. } => CredentialKind::Pseudonym,
            Credential::Anonymous => CredentialKind::Anonymous,
        }
    }

    /// What RESPONSE seals. The access MAC covers h1 and the key.
    pub(crate) fn bytes(&self, h1: &Hash) -> [u8; CREDENTIAL] {
        let mut out = [0; CREDENTIAL];
        match self {
            Credential::Member { certificate, leaf, .. } => {
                out[..32].copy_from_slice(certificate);
                out[32..].copy_from_slice(leaf);
            }
            Credential::Pseudonym { key, tag, access } => {
                let id = pseudonym_id(key.public());
                out[..32].copy_from_slice(&id);
                out[32..48].copy_from_slice(tag);
                out[48..].copy_from_slice(&access_mac(access, h1, &id));
            }
            Credential::Anonymous => {}
        }
        out
    }

    /// The static KEM key that ct3 is for.
    pub(crate) fn static_key(&self) -> Option<&kem::SecretKey> {
        match self {
            Credential::Member { key, .. } | Credential::Pseudonym { key, .. } => Some(key),
            Credential::Anonymous => None,
        }
    }

    /// What stands for the initiator in h2.
    pub(crate) fn identity(&self) -> Vec<Vec<u8>> {
        match self {
            Credential::Member { certificate, leaf, .. } => vec![certificate.to_vec(), leaf.to_vec()],
            Credential::Pseudonym { key, .. } => vec![key.public().as_bytes().to_vec()],
            Credential::Anonymous => vec![],
        }
    }

    /// What CERT carries.
    fn chain(&self) -> Option<&[u8]> {
        match self {
            Credential::Member { chain, .. } => Some(chain),
            Credential::Pseudonym { key, .. } => Some(key.public().as_bytes()),
            Credential::Anonymous => None,
        }
    }
}

/// Names a pseudonym's key.
pub(crate) fn pseudonym_id(key: &kem::PublicKey) -> Hash {
    key.id()
}

/// Proof of belonging to a network at a relay.
pub(crate) fn access_mac(access: &Secret<32>, h1: &Hash, pseudonym: &Hash) -> [u8; 16] {
    kdf::mac16(access, Label::AccessMac, &[h1, pseudonym])
}

/// The responder's leaf, as the initiator knows it.
#[derive(Clone)]
pub struct ResponderLeaf {
    /// R's NodeId.
    pub node: [u8; 32],
    /// Hash of the leaf's bytes.
    pub hash: Hash,
    /// Its KEM key.
    pub key: kem::PublicKey,
}

/// What an opening needs.
pub struct InitiatorConfig {
    /// Who is spoken to.
    pub contact: Contact,
    /// Their leaf; `None` pulls it (HELLO's flag LEAF).
    pub leaf: Option<ResponderLeaf>,
    /// What is shown to them.
    pub credential: Credential,
    /// Suites that are offered.
    pub suites: Vec<Suite>,
}

/// What came of a packet.
pub enum Progress {
    /// Nothing yet.
    Pending,
    /// The leaf pull is complete: verify the bundle, then call [`Initiator::set_leaf`].
    Bundle(Vec<u8>),
    /// Done.
    Finished(Box<Finished>),
}

/// A finished opening.
pub struct Finished {
    /// The session's keys.
    pub keys: SessionKeys,
    /// What the responder said.
    pub established: Established,
    /// The initiator's session id.
    pub sid: Sid,
    /// Who answered.
    pub responder: [u8; 32],
}

enum State {
    Hello,
    /// The leaf is being pulled; `parts` is `None` until the first reply tells their number.
    Leaf {
        challenge: Challenged,
        parts: Option<Pieces>,
        next: u8,
    },
    /// The bundle is with the caller.
    Verifying {
        challenge: Challenged,
    },
    Response(Box<Sent>),
    Done,
}

struct Challenged {
    choice: Choice,
    suite: Suite,
    nonce_r: [u8; 16],
    solution: u64,
}

struct Sent {
    cookie: [u8; 16],
    stage1: Stage1,
    suite: Suite,
    ephemeral: kem::SecretKey,
    credential: [u8; CREDENTIAL + TAG],
    datagrams: Vec<Vec<u8>>,
    reply: Option<Pieces>,
}

/// One opening. Feed it with packets, drain [`Initiator::poll_transmit`] after each call, come back at
/// [`Initiator::deadline`].
pub struct Initiator {
    config: InitiatorConfig,
    hello: Hello,
    hash: Hash,
    state: State,
    challenges: u8,
    repeats: u32,
    began: Time,
    repeat_at: Time,
    wait: Duration,
    out: VecDeque<Vec<u8>>,
}

impl Initiator {
    /// Begins: HELLO is ready to be sent.
    pub fn new(config: InitiatorConfig, now: Time, rng: &mut Rng) -> Self {
        let mut hello = Hello {
            version_min: VERSIONS.0,
            version_max: VERSIONS.1,
            suites: super::suite_mask(&config.suites),
            kind: config.credential.kind(),
            flags: if config.leaf.is_none() { FLAG_LEAF } else { 0 },
            sid: rng.bytes(),
            nonce: rng.bytes(),
            mac: [0; 16],
        };
        hello.mac = config.contact.hello_mac(&hello.maced());
        let hash = hello_hash(&hello.core());
        let wait = rng.jitter(FIRST_WAIT);
        Initiator {
            config,
            hello,
            hash,
            state: State::Hello,
            challenges: 0,
            repeats: 0,
            began: now,
            repeat_at: now + wait,
            wait,
            out: VecDeque::from([hello.emit()]),
        }
    }

    /// This opening's id: replies carry it.
    pub fn sid(&self) -> &Sid {
        &self.hello.sid
    }

    /// Nothing was heard for a second or so: whoever is there may be away.
    pub fn is_unheard(&self) -> bool {
        matches!(self.state, State::Hello) && self.wait >= MAX_WAIT * 3 / 4
    }

    /// The next datagram to send to the responder.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        self.out.pop_front()
    }

    /// When to call [`Initiator::handle_timeout`].
    pub fn deadline(&self) -> Time {
        self.repeat_at.min(self.began + LIFETIME)
    }

    /// Repeats what is unanswered. `false`: the opening has failed.
    pub fn handle_timeout(&mut self, now: Time, rng: &mut Rng) -> bool {
        if now.since(self.began) >= LIFETIME {
            return false;
        }
        if now < self.repeat_at {
            return true;
        }
        self.wait = rng.jitter((self.wait * 2).min(MAX_WAIT));
        self.repeat_at = now + self.wait;
        match &self.state {
            State::Hello => self.out.push_back(self.hello.emit()),
            State::Leaf { .. } => {
                self.request_parts();
                self.ask_for_a_cookie();
            }
            State::Response(sent) => {
                self.out.extend(sent.datagrams.iter().cloned());
                self.ask_for_a_cookie();
            }
            State::Verifying { .. } | State::Done => {}
        }
        true
    }

    /// The responder may have restarted, or its cookie key have turned: after two repeats in vain, HELLO goes too.
    fn ask_for_a_cookie(&mut self) {
        self.repeats += 1;
        if self.repeats >= 2 {
            self.out.push_back(self.hello.emit());
        }
    }

    /// Takes a CHALLENGE, ESTABLISHED, NEED_CERT or LEAF_REPLY with this opening's sid.
    ///
    /// # Errors
    /// Why it was dropped; the opening goes on.
    pub fn handle(&mut self, now: Time, packet: &[u8], rng: &mut Rng) -> Result<Progress, DropReason> {
        let progress = match packet.first().and_then(|b| PacketType::from_byte(*b)) {
            Some(PacketType::Challenge) => self.on_challenge(now, &Challenge::parse(packet)?, rng),
            Some(PacketType::LeafReply) => self.on_leaf(packet),
            Some(PacketType::NeedCert) => self.on_need_cert(&NeedCert::parse(packet)?),
            Some(PacketType::Established) => self.on_established(packet),
            _ => Err(DropReason::BadHandshake),
        }?;
        // It answers: what is still missing is worth asking for soon.
        self.wait = FIRST_WAIT;
        self.repeat_at = self.repeat_at.min(now + rng.jitter(FIRST_WAIT));
        Ok(progress)
    }

    fn restart_timer(&mut self, now: Time, rng: &mut Rng) {
        self.wait = rng.jitter(FIRST_WAIT);
        self.repeat_at = now + self.wait;
    }

    fn on_challenge(&mut self, now: Time, c: &Challenge, rng: &mut Rng) -> Result<Progress, DropReason> {
        // A late CHALLENGE (a repeat of HELLO was answered twice) must not start the work again; a new one after
        // RESPONSE can only mean that the cookie had expired.
        if !matches!(self.state, State::Hello | State::Leaf { .. } | State::Response(_))
            || c.sid != self.hello.sid
        {
            return Err(DropReason::UnknownHandshake);
        }
        if self.challenges >= MAX_CHALLENGES {
            return Err(DropReason::OverLimit);
        }
        let key = Key::new(
            Suite::ChaCha20Poly1305,
            &self.config.contact.challenge_key(&self.hello.nonce, &c.nonce),
        );
        let mut sealed = c.sealed;
        let plain =
            key.open(0, &Challenge::header(&c.sid, &c.nonce), &mut sealed).map_err(|_| DropReason::BadTag)?;
        let choice = Choice::parse(plain)?;
        // No silent downgrade: what was not offered is refused. [P-NEGOTIATE]
        if choice.version != VERSION {
            return Err(DropReason::BadVersion);
        }
        let suite = Suite::try_from(choice.suite).map_err(|_| DropReason::BadSuite)?;
        if !self.config.suites.contains(&suite) {
            return Err(DropReason::BadSuite);
        }
        let known = match &self.state {
            // Half an answer counts for little once the rest has failed to come: it may be of a process that is gone.
            State::Response(s) => s.cookie == choice.cookie || (s.reply.is_some() && self.repeats < 2),
            State::Leaf { challenge, .. } => challenge.choice.cookie == choice.cookie,
            _ => false,
        };
        if known {
            return Err(DropReason::UnknownHandshake);
        }
        let solution = cookie::solve(&choice).ok_or(DropReason::OverLimit)?;
        self.challenges += 1;
        self.repeats = 0;
        let challenge = Challenged { choice, suite, nonce_r: c.nonce, solution };
        self.restart_timer(now, rng);
        match self.config.leaf.clone() {
            Some(leaf) => self.respond(challenge, &leaf)?,
            None => {
                // Parts that are here already stay: what they hold is verified as a whole.
                let parts = match std::mem::replace(&mut self.state, State::Done) {
                    State::Leaf { parts, .. } => parts,
                    _ => None,
                };
                self.state = State::Leaf { challenge, parts, next: 0 };
                self.request_parts();
            }
        }
        Ok(Progress::Pending)
    }

    /// The caller has verified the bundle: this is the responder's leaf.
    ///
    /// # Errors
    /// The opening is not at that point, or the KEM refuses the key.
    pub fn set_leaf(&mut self, now: Time, leaf: ResponderLeaf, rng: &mut Rng) -> Result<(), DropReason> {
        match std::mem::replace(&mut self.state, State::Done) {
            State::Verifying { challenge } => {
                self.config.leaf = Some(leaf.clone());
                self.restart_timer(now, rng);
                self.respond(challenge, &leaf)
            }
            other => {
                self.state = other;
                Err(DropReason::UnknownHandshake)
            }
        }
    }

    fn header(&self, packet: PacketType, index: u8, count: u8, c: &Challenged) -> CookieHeader {
        CookieHeader {
            packet,
            index,
            count,
            choice: c.choice,
            sid: self.hello.sid,
            hello_hash: self.hash,
            solution: c.solution,
        }
    }

    fn request_parts(&mut self) {
        let State::Leaf { challenge, parts, .. } = &self.state else { return };
        let wanted: Vec<u8> = match parts {
            // How many there are is not known yet: ask for a few at once, so that one round trip does most of it.
            None => (0..LEAF_WINDOW as u8).collect(),
            Some(p) => (0..p.count() as u8).filter(|i| !p.has(*i)).take(LEAF_WINDOW).collect(),
        };
        let requests: Vec<_> = wanted
            .iter()
            .map(|part| {
                let header = self.header(PacketType::LeafRequest, 0, 1, challenge);
                LeafRequest { header, hello: self.hello.core(), part: *part }.emit()
            })
            .collect();
        if let State::Leaf { next, .. } = &mut self.state {
            *next = wanted.last().map_or(0, |l| l + 1);
        }
        self.out.extend(requests);
    }

    fn on_leaf(&mut self, packet: &[u8]) -> Result<Progress, DropReason> {
        let (header, sealed) = ReplyHeader::parse(packet)?;
        let State::Leaf { challenge, parts, next } = &mut self.state else {
            return Err(DropReason::UnknownHandshake);
        };
        let key = Key::new(
            Suite::ChaCha20Poly1305,
            &self.config.contact.leaf_key(&self.hello.nonce, &challenge.nonce_r),
        );
        let plain =
            key.open_vec(u64::from(header.index), &header.emit(), sealed).map_err(|_| DropReason::BadTag)?;
        let parts = parts.get_or_insert_with(|| Pieces::new(header.count));
        if parts.count() != usize::from(header.count) {
            return Err(DropReason::BadHandshake);
        }
        parts.add(header.index, &plain);
        self.repeats = 0;
        if let Some(bundle) = parts.whole() {
            let State::Leaf { challenge, .. } = std::mem::replace(&mut self.state, State::Done) else {
                return Ok(Progress::Pending);
            };
            self.state = State::Verifying { challenge };
            return Ok(Progress::Bundle(bundle));
        }
        // One reply in, one request out: the window stays full until all were asked for.
        if usize::from(*next) < parts.count() {
            let part = *next;
            *next += 1;
            let State::Leaf { challenge, .. } = &self.state else { return Ok(Progress::Pending) };
            let header = self.header(PacketType::LeafRequest, 0, 1, challenge);
            self.out.push_back(LeafRequest { header, hello: self.hello.core(), part }.emit());
        }
        Ok(Progress::Pending)
    }

    fn respond(&mut self, c: Challenged, leaf: &ResponderLeaf) -> Result<(), DropReason> {
        let ephemeral = kem::SecretKey::generate().map_err(|_| DropReason::BadHandshake)?;
        let (ct1, ss1) = kem::encapsulate(&leaf.key).map_err(|_| DropReason::BadHandshake)?;
        let h1 = H1 {
            version: c.choice.version,
            suite: c.suite,
            kind: self.hello.kind,
            profile: &self.config.contact.profile,
            hello: &self.hash,
            nonce_r: &c.nonce_r,
            responder: &leaf.node,
            leaf: &leaf.hash,
            ephemeral: ephemeral.public().as_bytes(),
            ct1: &ct1,
        }
        .hash();
        let stage1 = Stage1::new(h1, &ss1, self.config.contact.mix.as_ref());
        let plain = self.config.credential.bytes(&h1);
        let sealed = stage1.response_key().seal_vec(0, &h1, &plain);
        let credential = sealed.try_into().map_err(|_| DropReason::BadHandshake)?;
        let body = Response {
            hello: self.hello.core(),
            leaf_hash: leaf.hash,
            ephemeral: Box::new(*ephemeral.public().as_bytes()),
            ct1: Box::new(ct1),
            credential,
        }
        .emit();
        let chunk = SAFE_DATAGRAM - COOKIE_HEADER;
        let count = body.len().div_ceil(chunk) as u8;
        let datagrams: Vec<Vec<u8>> = body
            .chunks(chunk)
            .enumerate()
            .map(|(i, piece)| {
                let mut v = Vec::with_capacity(SAFE_DATAGRAM);
                self.header(PacketType::Response, i as u8, count, &c).emit(&mut v);
                v.extend_from_slice(piece);
                v
            })
            .collect();
        self.out.extend(datagrams.iter().cloned());
        self.state = State::Response(Box::new(Sent {
            cookie: c.choice.cookie,
            stage1,
            suite: c.suite,
            ephemeral,
            credential,
            datagrams,
            reply: None,
        }));
        Ok(())
    }

    fn on_need_cert(&mut self, n: &NeedCert) -> Result<Progress, DropReason> {
        let State::Response(sent) = &self.state else { return Err(DropReason::UnknownHandshake) };
        let missing = sent
            .stage1
            .need_cert_key()
            .open_vec(u64::from(n.seq), &NeedCert::header(n.seq, &n.sid), &n.sealed)
            .map_err(|_| DropReason::BadTag)?;
        let missing = missing.try_into().map_or(0, u32::from_be_bytes);
        let chain = self.config.credential.chain().ok_or(DropReason::BadHandshake)?;
        let key = sent.stage1.cert_key();
        let parts = chain.chunks(PART);
        let count = parts.len();
        if count > MAX_PARTS {
            return Err(DropReason::TooLong);
        }
        for (i, part) in parts.enumerate().filter(|(i, _)| missing >> i & 1 == 1) {
            let header = ReplyHeader {
                packet: PacketType::Cert,
                index: i as u8,
                count: count as u8,
                sid: self.hello.sid,
            };
            let mut v = header.emit().to_vec();
            v.extend(key.seal_vec(i as u64, &header.emit(), part));
            self.out.push_back(v);
        }
        Ok(Progress::Pending)
    }

    fn on_established(&mut self, packet: &[u8]) -> Result<Progress, DropReason> {
        let (header, piece) = ReplyHeader::parse(packet)?;
        let State::Response(sent) = &mut self.state else { return Err(DropReason::UnknownHandshake) };
        let reply = sent.reply.get_or_insert_with(|| Pieces::new(header.count));
        if reply.count() != usize::from(header.count) {
            *reply = Pieces::new(header.count);
        }
        reply.add(header.index, piece);
        let Some(body) = reply.whole() else { return Ok(Progress::Pending) };
        let opened = open_established(
            &sent.stage1,
            sent.suite,
            &sent.ephemeral,
            &self.config.credential,
            &sent.credential,
            &body,
            None,
        );
        let (keys, established) = match opened {
            Ok(x) => x,
            Err(e) => {
                // A piece was forged or mangled: wait for the repeat of all of them.
                sent.reply = None;
                return Err(e);
            }
        };
        let responder = self.config.leaf.as_ref().map(|l| l.node).ok_or(DropReason::BadHandshake)?;
        self.state = State::Done;
        Ok(Progress::Finished(Box::new(Finished { keys, established, sid: self.hello.sid, responder })))
    }
}

/// Opens ct2, ct3 and the confirmation of an ESTABLISHED, of an opening or of a rekey.
pub(crate) fn open_established(
    stage1: &Stage1,
    suite: Suite,
    ephemeral: &kem::SecretKey,
    credential: &Credential,
    sealed_credential: &[u8],
    body: &[u8],
    exporter: Option<&Secret<32>>,
) -> Result<(SessionKeys, Established), DropReason> {
    let mut r = shadowmesh_wire::Reader::new(body);
    let ct2 = r.array::<KEM>()?;
    let ss2 = ephemeral.decapsulate(&ct2).map_err(|_| DropReason::BadHandshake)?;
    let (ct3, ss3) = match credential.static_key() {
        Some(key) => {
            let ct3 = r.array::<KEM>()?;
            (ct3.to_vec(), Some(key.decapsulate(&ct3).map_err(|_| DropReason::BadHandshake)?))
        }
        None => (vec![], None),
    };
    let identity = credential.identity();
    let identity: Vec<&[u8]> = identity.iter().map(Vec::as_slice).collect();
    let stage2 = stage1.stage2(sealed_credential, &identity, &ct2, &ct3, &ss2, ss3.as_ref(), exporter);
    let plain = stage2.confirm_key().open_vec(0, &stage2.h2, r.rest()).map_err(|_| DropReason::BadTag)?;
    let established = Established::parse(&plain)?;
    Ok((stage2.session(suite, Role::Initiator), established))
}
