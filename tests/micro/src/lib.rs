//! The hot path's pieces by themselves, each a function that is prepared once and run often: `benches/time.rs` times them,
//! the program `micro` runs one for a counter of instructions (`tests/micro/run`).

use shadowmesh_crypto::aead::{Key, Suite};
use shadowmesh_crypto::secret::Secret;
use shadowmesh_proto::batch::{Delivered, RxBatch, TxBatch};
use shadowmesh_proto::frame::Outline;
use shadowmesh_proto::lane::{RxLane, TxLane};
use shadowmesh_proto::superframe::{Headers, VnetHeader};
use shadowmesh_proto::window::ReplayWindow;
use shadowmesh_proto::{Inbound, Install, Outbound, Sealer, Snapshot, Time};
use shadowmesh_sim::guest;
use shadowmesh_sim::world::{Setup, Weather, World, address};
use shadowmesh_wire::data::{ChunkHeader, Kind};
use std::hint::black_box;
use std::net::Ipv4Addr;

/// One of them.
pub struct Piece {
    /// Its name.
    pub name: &'static str,
    /// What is counted in one run: frames, datagrams, lookups.
    pub each: &'static str,
    /// How many of those a run has.
    pub count: u64,
    run: Box<dyn FnMut()>,
}

impl Piece {
    /// Runs it once.
    #[inline(never)]
    pub fn measured_run(&mut self) {
        (self.run)();
    }
}

/// Frames of one batch.
const BATCH: u64 = 64;
/// A TCP superframe's payload: 21 segments of an Ethernet.
const SUPERFRAME: usize = 30_000;
/// Members with a host each behind them, in the table that is looked up.
const MEMBERS: u32 = 1000;

/// All of them, prepared.
pub fn pieces() -> Vec<Piece> {
    let w = world();
    vec![
        seal("seal-64", &w, plain(&w, 64)),
        seal("seal-1300", &w, plain(&w, 1300)),
        chunk_and_seal(&w),
        open("open-1300", &w, &vec![(Kind::Frame, plain(&w, 1300)); BATCH as usize], BATCH),
        open("open-and-join", &w, &parts(&w), 1),
        lookup(&w),
        window(),
    ]
}

fn piece(name: &'static str, each: &'static str, count: u64, run: impl FnMut() + 'static) -> Piece {
    Piece { name, each, count, run: Box::new(run) }
}

/// Two members that have a session.
fn world() -> World {
    let mut w = World::new(1, Setup::plain(2, false), Weather::CALM);
    w.send(0, 1, 100);
    w.run(std::time::Duration::from_secs(1));
    w
}

/// A frame of the first to the second.
fn plain(w: &World, len: usize) -> Vec<u8> {
    guest::Judge::default().send(0, vec![1], macs(w), len - 16).1
}

fn macs(w: &World) -> [[u8; 6]; 2] {
    [0, 1].map(|n: usize| w.nodes[n].id.mac())
}

fn superframe(w: &World) -> (Vec<u8>, VnetHeader) {
    let ends = [1, 2].map(|n| Ipv4Addr::new(10, 83, 1, n));
    guest::superframe(macs(w), ends, 1, SUPERFRAME)
}

fn key() -> Key {
    Key::new(Suite::Aes256Gcm, &Secret::new([7; 32]))
}

/// The first member's sending half, with a lane of its own to the second.
fn outbound(w: &World) -> Outbound {
    let snapshot = w.nodes[0].endpoint.node.snapshot();
    let lanes = snapshot.peers.values().find_map(|p| p.lanes);
    let lane = lanes.unwrap_or_else(|| panic!("a session"))[1];
    let mut sealer = Sealer::new(1, 0);
    let _ours = sealer.install(Install::Tx { thread: 1, lane, keys: TxLane::new(9, key()) });
    Outbound::new(sealer, snapshot, TxBatch::new(BATCH as usize, SUPERFRAME + 100, 256 << 10))
}

fn seal(name: &'static str, w: &World, frame: Vec<u8>) -> Piece {
    let mut tx = outbound(w);
    piece(name, "frame", BATCH, move || {
        for _ in 0..BATCH {
            tx.batch().push(&frame, None);
        }
        tx.seal(Time(1), |batch| assert_eq!(batch.datagrams().len() as u64, BATCH), drop);
    })
}

fn chunk_and_seal(w: &World) -> Piece {
    let mut tx = outbound(w);
    let (frame, vnet) = superframe(w);
    let count = parts(w).len() as u64;
    piece("chunk-and-seal", "segment", count, move || {
        tx.batch().push(&frame, Some(vnet));
        tx.seal(Time(1), |batch| assert!(batch.datagrams().len() as u64 >= count), drop);
    })
}

/// Opens the same datagrams again and again, by a lane that is new each time: its window would drop them else.
fn open(name: &'static str, w: &World, bodies: &[(Kind, Vec<u8>)], frames: u64) -> Piece {
    let snapshot = w.nodes[1].endpoint.node.snapshot();
    let mut tx = TxLane::new(9, key());
    let sealed =
        |(kind, body): &(Kind, Vec<u8>)| tx.seal(*kind, body).unwrap_or_else(|e| panic!("a new lane: {e}"));
    let datagrams: Vec<_> = bodies.iter().map(sealed).collect();
    let peer = peer_of(w, &snapshot);
    let mut inbound = Inbound::new(shadowmesh_proto::Opener::new(), snapshot, RxBatch::new(1 << 20));
    piece(name, "datagram", datagrams.len() as u64, move || {
        let keys = RxLane::new(key());
        let _ours = inbound.install(Install::Rx { index: 9, lane: 1, session: 1, peer, keys });
        for d in &datagrams {
            inbound.batch().push(address(0), d);
        }
        let mut out = 0;
        inbound.open(Time(1), |f: Delivered<'_>| out += u64::from(!f.head.is_empty()), |_, _, _| (), drop);
        assert_eq!(out, frames);
    })
}

/// A superframe's parts as they are sent.
fn parts(w: &World) -> Vec<(Kind, Vec<u8>)> {
    let (frame, vnet) = superframe(w);
    let outline = Outline::read(&frame).unwrap_or_else(|e| panic!("a frame: {e}"));
    let headers = Headers::read(&frame, &outline).unwrap_or_else(|| panic!("TCP"));
    let size = usize::from(vnet.gso_size);
    let part = |at: usize| {
        let mut body = ChunkHeader { id: 1, size: vnet.gso_size }.emit().to_vec();
        headers.cut(&frame, at, size, at / size, &mut body);
        (Kind::Chunk, body)
    };
    (0..SUPERFRAME).step_by(size).map(part).collect()
}

fn peer_of(w: &World, snapshot: &Snapshot) -> u32 {
    let mac = w.nodes[0].id.mac();
    *snapshot.macs.get(&mac).unwrap_or_else(|| panic!("the first is known"))
}

/// Who has a MAC, among a thousand members.
fn lookup(w: &World) -> Piece {
    let mut snapshot = (*w.nodes[0].endpoint.node.snapshot()).clone();
    let peer = *snapshot.macs.values().next().unwrap_or_else(|| panic!("one peer"));
    let mac = |n: u32| {
        let [a, b, c, d] = n.to_be_bytes();
        [2, 0, a, b, c, d]
    };
    snapshot.macs.extend((0..MEMBERS).map(|n| (mac(n), peer)));
    piece("switch-lookup", "lookup", u64::from(MEMBERS), move || {
        assert!((0..MEMBERS).all(|n| snapshot.owner(black_box(&mac(n))).is_some()));
    })
}

/// A lane's replay window: in order, and each fourth a few late.
fn window() -> Piece {
    let mut window = Box::new(ReplayWindow::<128>::default());
    let mut next = 0u64;
    piece("replay-window", "packet", 1024, move || {
        for n in next..next + 1024 {
            let counter = if n % 4 == 0 { n + 3 } else { n - 1 };
            if window.check(black_box(counter)).is_ok() {
                window.accept(counter);
            }
        }
        next += 1024;
    })
}
