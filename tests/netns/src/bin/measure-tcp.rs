//! `make bench-tcp`: the speed of a network where TCP 443 alone leaves, beside TLS and WebSocket by themselves over the same
//! line, and plain TCP.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use shadowmesh_host::clock::Clock;
use shadowmesh_netns_tests::{
    Internet, Machine, Measured, NatKind, VPS4, iperf3, median, received_mbit, wait_until,
};
use tungstenite::{Message, WebSocket};

/// Of each round.
const TIME: Duration = Duration::from_secs(4);
/// What a message of the tunnel holds at most.
const MESSAGE: usize = 64 << 10;
const PORT: u16 = 8443;

fn main() {
    let rounds: usize = std::env::var("BENCH_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(5);
    let mut measured = Measured::new("bench-tcp");
    let mut internet = Internet::new("speed by TCP");
    let free = internet.machine("free", NatKind::PortRestricted);
    let far = internet.machine("far", NatKind::PortRestricted);
    let shut = internet.machine("shut", NatKind::UdpBlocked);
    let home = internet.machine("home", NatKind::UdpBlocked);
    make(&internet, &[&shut, &home, &far]);
    let (to_home, to_far) = (home.overlay(), far.overlay());
    for to in [&to_home, &to_far] {
        shut.host.must_reach(to, 20);
    }
    let mut all: [Vec<f64>; 5] = Default::default();
    for round in 1..=rounds {
        let speed = |from: &Machine, to: &Machine, address: &str, how: &[&str]| {
            received_mbit(&iperf3(&from.host, &to.host, address, how, TIME, || ())) / 1000.0
        };
        let plain = {
            let said = iperf3(&free.host, &internet.vps, VPS4[0], &[], TIME, || ());
            received_mbit(&said) / 1000.0
        };
        let found = [
            plain,
            ceiling(&internet, &free),
            speed(&shut, &far, &to_far, &[]),
            speed(&shut, &far, &to_far, &["-R"]),
            speed(&shut, &home, &to_home, &[]),
        ];
        println!("round {round}: {found:.2?}");
        for (list, value) in all.iter_mut().zip(found) {
            list.push(value);
        }
    }
    let by = shut.get("/v1/status").map(|s| s["networks"][0]["relays"][0]["by"].to_string());
    assert_eq!(by.as_deref(), Some("\"tcp\""));
    let [plain, ceiling, up, down, both] = all.map(median);
    let mut line = |id: &str, what: &str, value: f64, least: Option<f64>| {
        let goal = least.map_or(String::new(), |g| format!(">= {g}"));
        measured.line(id, what, value, "Gbit/s", &goal, least.is_none_or(|g| value >= g));
    };
    line("8-plain", "plain TCP from a machine to the relay's", plain, None);
    line("8-ceiling", "TLS 1.3 and WebSocket by themselves, there", ceiling, None);
    line("8-tcp-up", "a machine by TCP 443 to one by UDP, one stream", up, Some(1.0));
    line("8-tcp-down", "and back", down, Some(1.0));
    line("8-tcp-both", "between two by TCP 443", both, None);
}

fn make(internet: &Internet, machines: &[&Machine]) {
    let admin = machines[0];
    let must = |m: &Machine, a: &[&str]| m.quietly(a).unwrap_or_else(|e| panic!("{e}"));
    let name = admin.host.name();
    must(admin, &["network", "create", "home", "--relay", &internet.urls[0], "--device", name]);
    wait_until("the relay link", Duration::from_secs(10), || {
        let status = admin.get("/v1/status")?;
        (status["networks"][0]["relays"][0]["up"] == true).then_some(())
    });
    for m in &machines[1..] {
        let name = m.host.name();
        let url = must(admin, &["invite", name]);
        must(m, &["join", url.trim(), "--name", name]);
    }
}

/// Messages in one direction by the same libraries, Gbit/s.
fn ceiling(internet: &Internet, from: &Machine) -> f64 {
    let made = rcgen::generate_simple_self_signed(["relay.test".to_owned()]).expect("a certificate");
    let certificate = made.cert.der().clone();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into();
    let only = [&rustls::version::TLS13];
    let server = ServerConfig::builder_with_protocol_versions(&only)
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .expect("a server's configuration");
    let mut roots = RootCertStore::empty();
    roots.add(certificate).expect("a root");
    let client = ClientConfig::builder_with_protocol_versions(&only)
        .with_root_certificates(roots)
        .with_no_client_auth();
    let at = SocketAddr::new(VPS4[0].parse().expect("an address"), PORT);
    let listener = internet.vps.enter(|| TcpListener::bind(at)).expect("a listener");
    std::thread::scope(|scope| {
        let counted = scope.spawn(move || {
            let (tcp, _) = listener.accept().expect("a connection");
            let connection = ServerConnection::new(Arc::new(server)).expect("TLS");
            let mut socket = tungstenite::accept(StreamOwned::new(connection, tcp))
                .map_err(|e| e.to_string())
                .expect("it");
            let (clock, mut bytes) = (Clock::new(), 0);
            while let Ok(Message::Binary(message)) = socket.read() {
                bytes += message.len();
            }
            bytes as f64 * 8.0 / clock.now().as_secs_f64() / 1e9
        });
        let tcp = from.host.enter(|| TcpStream::connect(at)).expect("a connection");
        let name = ServerName::try_from("relay.test").expect("a name");
        let connection = ClientConnection::new(Arc::new(client), name).expect("TLS");
        let tls = StreamOwned::new(connection, tcp);
        let (mut socket, _): (WebSocket<_>, _) =
            tungstenite::client("ws://relay.test/", tls).map_err(|e| e.to_string()).expect("a WebSocket");
        let (clock, payload) = (Clock::new(), vec![0xa5u8; MESSAGE]);
        while clock.now() < TIME {
            socket.send(Message::Binary(payload.clone().into())).expect("a message");
        }
        let _closing = socket.close(None);
        let _closed = socket.flush();
        drop(socket);
        counted.join().expect("the other end")
    })
}
