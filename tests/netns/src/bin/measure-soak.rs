//! `make soak`: two members for an hour at full speed, a TCP stream each way. Every byte is checked by hash at the far end
//! (the overlay leaves TCP's checksums to its own tags, so what it spoils nobody else would notice), nothing is dropped, and
//! the daemons' memory stays what it was.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use shadowmesh_host::clock::Clock;
use shadowmesh_netns_tests::{Host, Lab, Measured, Pair, median, rss};

/// Bytes that are hashed together.
const BLOCK: usize = 4 << 20;
/// Random bytes that blocks are pieces of.
const POOL: usize = 64 << 20;
/// Between looks at the daemons' memory.
const LOOK: Duration = Duration::from_secs(10);
/// A daemon that grows by more than this from the second quarter of the time to the last is not flat, KiB.
const FLAT: f64 = 512.0;

/// What streams in one direction.
#[derive(Debug)]
struct Stream {
    sending: JoinHandle<()>,
    receiving: JoinHandle<()>,
}

/// What both receivers count.
#[derive(Debug, Default)]
struct Counts {
    bytes: AtomicU64,
    wrong: AtomicU64,
    ended: AtomicBool,
}

fn main() {
    let seconds = std::env::var("SOAK_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(3600);
    let time = Duration::from_secs(seconds);
    let mut measured = Measured::new("soak");
    let mut lab = Lab::new("soak");
    let (a, b) = (lab.host("a"), lab.host("b"));
    lab.wire(&a, &["10.1.0.2/24"], &b, &["10.1.0.3/24"]);
    let pair = Pair::start(lab.directory(), [(&a, "10.1.0.2"), (&b, "10.1.0.3")], "");
    a.must_reach(&pair.to(), 10);

    let pool: &[u8] = random_bytes().leak();
    let counts: &Counts = Box::leak(Box::default());
    let addresses = [0, 1].map(|n| pair.members[n].ipv4.to_string());
    let streams = [(&a, &b, &addresses[1]), (&b, &a, &addresses[0])]
        .map(|(from, to, address)| stream(from, to, address, pool, counts));
    let (clock, mut looks) = (Clock::new(), vec![]);
    println!("minute  GiB checked  memory, KiB");
    while clock.now() < time && streams.iter().all(|s| !s.receiving.is_finished()) {
        std::thread::sleep(LOOK.min(time));
        let memory = [0, 1].map(|n| rss(pair.daemons[n].id()));
        looks.push(memory);
        if looks.len() % 6 == 0 {
            let gib = counts.bytes.load(Ordering::Relaxed) as f64 / f64::from(1 << 30);
            println!("{:6}  {gib:11.1}  {memory:?}", looks.len() / 6);
        }
    }
    let (lasted, ran) = (clock.now(), clock.now() >= time);
    counts.ended.store(true, Ordering::Relaxed);
    let ended = streams.into_iter().all(|s| s.sending.join().is_ok() && s.receiving.join().is_ok());

    let bytes = counts.bytes.load(Ordering::Relaxed) as f64;
    let mbit = bytes * 8.0 / lasted.as_secs_f64() / 1e6;
    let mut line = |id: &str, what: &str, value: f64, unit: &str, goal: &str, holds: bool| {
        measured.line(&format!("7-{id}"), what, value, unit, goal, holds);
    };
    line("time", "two TCP streams, one each way, for", lasted.as_secs_f64(), "s", "to the end", ran && ended);
    line("bytes", "checked by hash at the far end", bytes / f64::from(1 << 30), "GiB", "", bytes > 0.0);
    line("rate", "both together", mbit, "Mbit/s", "", true);
    let wrong = counts.wrong.load(Ordering::Relaxed) as f64;
    line("wrong", "blocks that were not what was sent", wrong, "", "0", wrong == 0.0);
    for (n, host) in [&a, &b].into_iter().enumerate() {
        let status = pair.json(n, host, &["status"]);
        let network = &status["networks"][0];
        let drops = network["drops"]
            .as_object()
            .map(|d| d.values().filter_map(|v| v.as_f64()).fold(0.0, |a, b| a + b));
        let rekeys = network["peers"][0]["rekeys"][0].as_f64().unwrap_or(0.0);
        println!("{}: {} {}", host.name(), network["drops"], network["peers"][0]);
        let drops: f64 = drops.unwrap_or(f64::NAN);
        line(
            "drops",
            &format!("{}: packets dropped, for any reason", host.name()),
            drops,
            "",
            "0",
            drops == 0.0,
        );
        line("rekeys", &format!("{}: rekeys", host.name()), rekeys, "", "", true);
        let of = |quarter: usize| {
            let looks = &looks[looks.len() * (quarter - 1) / 4..looks.len() * quarter / 4];
            median(looks.iter().map(|l| l[n]).collect())
        };
        let (early, late) = (of(2), of(4));
        line(
            "memory",
            &format!("{}: memory at the end", host.name()),
            late / 1024.0,
            "MiB",
            "<= 32",
            late <= 32768.0,
        );
        let what = format!("{}: more than in the second quarter", host.name());
        line("growth", &what, late - early, "KiB", &format!("<= {FLAT}"), late - early <= FLAT);
    }
}

/// Blocks from one host to another, each followed by its number and hash, which tell whether it arrived as it was.
fn stream(from: &Host, to: &Host, address: &str, pool: &'static [u8], counts: &'static Counts) -> Stream {
    let listener = to.enter(|| TcpListener::bind((address, 0)).expect("a listener"));
    let target = listener.local_addr().expect("an address");
    let sender = from.enter(|| TcpStream::connect(target).expect("a connection"));
    let (receiver, _) = listener.accept().expect("a connection");
    let sending = std::thread::spawn(move || send(sender, pool, &counts.ended).expect("sending"));
    let receiving = std::thread::spawn(move || receive(receiver, counts).expect("receiving"));
    Stream { sending, receiving }
}

fn send(mut stream: TcpStream, pool: &[u8], ended: &AtomicBool) -> std::io::Result<()> {
    let mut number = 0u64;
    while !ended.load(Ordering::Relaxed) {
        // Odd steps, so that another piece comes each time.
        let at = (number as usize).wrapping_mul(7_368_787) % (POOL - BLOCK);
        let block = &pool[at..at + BLOCK];
        stream.write_all(block)?;
        stream.write_all(&number.to_be_bytes())?;
        stream.write_all(blake3::hash(block).as_bytes())?;
        number += 1;
    }
    Ok(())
}

fn receive(mut stream: TcpStream, counts: &Counts) -> std::io::Result<()> {
    let (mut block, mut number) = (vec![0; BLOCK + 8 + 32], 0u64);
    loop {
        match stream.read_exact(&mut block) {
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        }
        let (bytes, told) = block.split_at(BLOCK);
        let right = told[..8] == number.to_be_bytes() && told[8..] == *blake3::hash(bytes).as_bytes();
        counts.wrong.fetch_add(u64::from(!right), Ordering::Relaxed);
        counts.bytes.fetch_add(BLOCK as u64, Ordering::Relaxed);
        number += 1;
    }
}

/// The pool, from the system's own source.
fn random_bytes() -> Vec<u8> {
    let mut pool = vec![0; POOL];
    let mut source = std::fs::File::open("/dev/urandom").expect("/dev/urandom");
    source.read_exact(&mut pool).expect("random bytes");
    pool
}
