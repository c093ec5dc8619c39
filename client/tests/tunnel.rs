//! A tunnel and a relay that is played here: datagrams cross both ways, from the ports that the tunnel is for and from no
//! others; and a certificate that the relay has not signed is refused. [P-TCP]
#![allow(clippy::unwrap_used, reason = "a test; clippy exempts only functions marked as such")]

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Duration;

use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use shadowmesh::tunnel::{Target, Tunnel, connect};
use shadowmesh_crypto::sign::SigningKey;
use shadowmesh_identity::{NodeId, Seed, stream};
use shadowmesh_wire::stream::{datagrams, push};
use tungstenite::{Message, WebSocket};

type Socket = WebSocket<StreamOwned<ServerConnection, TcpStream>>;

/// A relay for one connection, which does that with it; its word for its certificate is by this key.
fn relay(signer: SigningKey, then: impl FnOnce(Socket) + Send + 'static) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into();
        let config = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let (tcp, _) = listener.accept().unwrap();
        drop(listener);
        let tls = StreamOwned::new(ServerConnection::new(Arc::new(config)).unwrap(), tcp);
        let mut socket = tungstenite::accept(tls).unwrap();
        let proof = stream::certify(&signer, made.cert.der()).unwrap();
        socket.send(Message::Binary(proof.into())).unwrap();
        then(socket);
    });
    (at, thread)
}

fn identity() -> SigningKey {
    Seed::random().relay_identity().unwrap()
}

fn target(relay: NodeId, at: SocketAddr) -> Target {
    Target { relay, place: at.to_string().parse().unwrap(), address: Some(at) }
}

fn user() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    socket
}

/// Sends everything back until the other side closes.
fn echo(mut socket: Socket) {
    while let Ok(Message::Binary(bytes)) = socket.read() {
        let (mut message, mut answer) = (Vec::from(bytes), vec![]);
        datagrams(&mut message, |d| assert!(push(&mut answer, d))).unwrap();
        socket.send(Message::Binary(answer.into())).unwrap();
    }
}

#[test]
fn datagrams_cross_both_ways() {
    let signer = identity();
    let id = NodeId::of(signer.public());
    let (at, thread) = relay(signer, echo);
    let mine = user();
    let connected = connect(&target(id, at)).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(connected.by, format!("tcp {at}"));
    let (ended, end) = channel();
    let users = [mine.local_addr().unwrap()];
    let tunnel = Tunnel::start(connected, &users, move || ended.send(()).unwrap()).unwrap();
    mine.connect(tunnel.local()).unwrap();
    let mut got = vec![0; 65_536];
    for round in 0..50u8 {
        for size in [1, 32, 1200, 1472, 9000, 60_000] {
            let sent: Vec<u8> = (0..size).map(|i: i32| (i as u8) ^ round).collect();
            mine.send(&sent).unwrap();
            let n = mine.recv(&mut got).unwrap();
            assert!(got[..n] == sent, "{size} bytes came back as {n}");
        }
    }
    assert!(tunnel.stands());
    // When it goes, so does the connection.
    drop(tunnel);
    end.recv_timeout(Duration::from_secs(3)).unwrap();
    thread.join().unwrap();
}

#[test]
fn a_strangers_datagram_is_not_carried() {
    let signer = identity();
    let id = NodeId::of(signer.public());
    let (at, _thread) = relay(signer, echo);
    let (mine, stranger) = (user(), user());
    let connected = connect(&target(id, at)).unwrap_or_else(|e| panic!("{e}"));
    let tunnel = Tunnel::start(connected, &[mine.local_addr().unwrap()], || ()).unwrap();
    stranger.send_to(b"let me in", tunnel.local()).unwrap();
    mine.send_to(b"mine", tunnel.local()).unwrap();
    let mut got = [0; 100];
    let (n, from) = mine.recv_from(&mut got).unwrap();
    assert_eq!((&got[..n], from), (&b"mine"[..], tunnel.local()));
    for socket in [&stranger, &mine] {
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let nothing = socket.recv(&mut got).unwrap_err();
        assert!(matches!(nothing.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut));
    }
}

#[test]
fn who_opens_tls_on_the_way_is_refused() {
    // It has the relay's address, a certificate of its own, and no key of the relay's.
    let (at, _thread) = relay(identity(), drop);
    let right = NodeId::of(identity().public());
    let Err(why) = connect(&target(right, at)) else { panic!("it was believed") };
    assert!(why.contains("opens TLS"), "{why}");
}

#[test]
fn a_relay_that_is_gone_ends_the_tunnel() {
    let signer = identity();
    let id = NodeId::of(signer.public());
    let (at, thread) = relay(signer, drop);
    let connected = connect(&target(id, at)).unwrap_or_else(|e| panic!("{e}"));
    let (ended, end) = channel();
    let users = [user().local_addr().unwrap()];
    let tunnel = Tunnel::start(connected, &users, move || ended.send(()).unwrap()).unwrap();
    thread.join().unwrap();
    end.recv_timeout(Duration::from_secs(3)).unwrap();
    assert!(!tunnel.stands());
    assert!(connect(&target(id, at)).is_err());
}
