//! What the relay takes over TCP from whoever comes: garbage, slow ones, other paths, too many, messages that lie. And
//! what a client finds: hybrid key exchange, and the relay's word for its certificate. [P-TCP]

#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use shadowmesh_host::clock::Clock;
use shadowmesh_identity::{RelayUrl, stream};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;
use tungstenite::{Message, WebSocket};

type Tls = StreamOwned<ClientConnection, TcpStream>;

#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        unreachable!()
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A relay with a configuration, and its URL.
fn relay(config: &str) -> (Dir, Process, RelayUrl) {
    let dir = Dir::new();
    let made = dir.say(&["--json", "init", "--public", "127.0.0.1:4433", "--listen", "udp://127.0.0.1:0"]);
    let made: serde_json::Value = serde_json::from_str(&made).unwrap();
    std::fs::write(dir.0.join("relay.yaml"), config).unwrap();
    let process = Process::start_as(&dir, "127.0.0.1:0", &["--allow-root", "--tcp", "tcp://127.0.0.1:0"]);
    (dir, process, made["url"].as_str().unwrap().parse().unwrap())
}

fn tcp(relay: &Process) -> TcpStream {
    let tcp = TcpStream::connect(relay.tcp.unwrap()).unwrap();
    tcp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    tcp
}

fn tls(relay: &Process) -> Tls {
    let provider = Arc::new(default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    let name = ServerName::try_from("relay.test").unwrap();
    let mut tls = StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), tcp(relay));
    while tls.conn.is_handshaking() {
        tls.conn.complete_io(&mut tls.sock).unwrap();
    }
    tls
}

/// What is answered to a request, up to the end of the connection.
fn ask(relay: &Process, request: &str) -> String {
    let mut tls = tls(relay);
    let _closed_early = tls.write_all(request.as_bytes());
    let mut text = vec![];
    let _closed_without_a_word = tls.read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

fn websocket(relay: &Process, url: &RelayUrl) -> WebSocket<Tls> {
    let tls = tls(relay);
    let path = stream::path(&url.relay);
    tungstenite::client::client(format!("ws://relay.test{path}"), tls).unwrap().0
}

/// How long until the other side closes.
fn closes(stream: &mut impl Read) -> Duration {
    let clock = Clock::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return clock.now(),
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                panic!("it stays open")
            }
            Err(_) => return clock.now(),
            Ok(_) => {}
        }
    }
}

/// [P-TCP]
#[test]
fn the_certificate_is_the_relays_and_the_key_exchange_hybrid() {
    let (_dir, relay, url) = relay("");
    let mut socket = websocket(&relay, &url);
    let connection = &socket.get_ref().conn;
    let group = connection.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
    assert_eq!(connection.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    let certificate = connection.peer_certificates().unwrap()[0].to_vec();
    let Message::Binary(proof) = socket.read().unwrap() else { panic!("no proof") };
    assert!(stream::is_certified(&url.relay, &certificate, &proof));
    assert_eq!(relay.metric("tcp_connections"), 1.0);
}

#[test]
fn whoever_asks_for_something_else_finds_nothing() {
    let (_dir, relay, url) = relay("");
    let path = stream::path(&url.relay);
    let upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for request in [
        "GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
        format!("GET /metrics HTTP/1.1\r\nHost: x\r\n{upgrade}\r\n"),
        format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"),
        format!("POST {path} HTTP/1.1\r\nHost: x\r\n{upgrade}\r\n"),
        format!("GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\n\r\n"),
    ] {
        let answer = ask(&relay, &request);
        assert!(answer.starts_with("HTTP/1.1 404 Not Found\r\n"), "{request}: {answer}");
        assert!(!answer.to_lowercase().contains("shadow"), "{answer}");
    }
    let long = format!("GET / HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n", "a".repeat(64 << 10));
    assert!(!ask(&relay, &long).starts_with("HTTP/1.1 2"));
    assert!(!ask(&relay, "\0\x01\x02 what\r\n\r\n").contains("200"));
    // And it goes on.
    websocket(&relay, &url);
}

#[test]
fn garbage_and_slow_ones_are_closed() {
    let (_dir, relay, url) = relay("");
    let mut garbage = tcp(&relay);
    garbage.write_all(&[0x55; 4000]).unwrap();
    assert!(closes(&mut garbage) < Duration::from_secs(2));
    // One says nothing, one stops within TLS, one within the request.
    let mut silent = tcp(&relay);
    let mut half = tcp(&relay);
    half.write_all(&[0x16, 3, 1, 2, 0, 1]).unwrap();
    let mut slow = tls(&relay);
    slow.write_all(b"GET / HTTP/1.1\r\nHost: ").unwrap();
    for stream in [&mut silent as &mut dyn Read, &mut half, &mut slow] {
        let mut stream = stream;
        assert!(closes(&mut stream) < Duration::from_secs(7));
    }
    websocket(&relay, &url);
}

#[test]
fn connections_are_bounded() {
    let (_dir, relay, url) = relay("limits: {tcp_connections_per_address: 3}");
    let first: Vec<_> = (0..3).map(|_| websocket(&relay, &url)).collect();
    let mut fourth = tcp(&relay);
    assert!(closes(&mut fourth) < Duration::from_secs(1));
    drop(first);
    // They leave room when they go.
    let clock = Clock::new();
    while relay.metric("tcp_connections") > 0.0 {
        assert!(clock.now() < Duration::from_secs(5));
    }
    websocket(&relay, &url);
}

#[test]
fn messages_that_lie() {
    let (_dir, relay, url) = relay("");
    let mut socket = websocket(&relay, &url);
    let _proof = socket.read().unwrap();
    for message in [&[][..], &[0], &[0, 0], &[255, 255, 1], &[0, 9, 1], &[0, 2, 0xc1, 1, 0, 1, 0x80]] {
        socket.send(Message::Binary(message.to_vec().into())).unwrap();
    }
    let clock = Clock::new();
    while relay.metric("datagrams_received_total") < 2.0 {
        assert!(clock.now() < Duration::from_secs(5));
    }
    // One that is larger than any may be ends the connection, as does text.
    let _cut = socket.send(Message::Binary(vec![1; 70_000].into()));
    let ended = |socket: &mut WebSocket<Tls>| !matches!(socket.read(), Ok(Message::Binary(_)));
    assert!(ended(&mut socket));
    let mut socket = websocket(&relay, &url);
    let _proof = socket.read().unwrap();
    socket.send(Message::Text("hello".into())).unwrap();
    assert!(ended(&mut socket));
    assert_eq!(relay.metric("state_saved"), 1.0);
}
