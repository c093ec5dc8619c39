//! Connecting: TCP to the relay, or to a proxy that connects, TLS 1.3 with hybrid key exchange, WebSocket, and the
//! relay's word for its certificate. Several ways at once, a moment apart; the first that stands is taken.

use super::proxy::{self, Proxy};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme};
use shadowmesh_identity::{HostPort, NodeId, stream};
use shadowmesh_wire::stream::MAX_MESSAGE;
use socket2::SockRef;
use std::io::{self, BufReader, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tungstenite::client::client_with_config;
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{Message, WebSocket};

/// Each step of a way: connecting, an answer.
const STEP: Duration = Duration::from_secs(4);
/// Between the beginnings of two ways (RFC 8305 says 250 ms).
const APART: Duration = Duration::from_millis(250);
/// All of it.
const PATIENCE: Duration = Duration::from_secs(10);
/// Addresses of a name that are tried.
const ADDRESSES: usize = 4;
/// A connection that takes nothing for so long is over.
const STALLED: Duration = Duration::from_secs(10);
/// What waits in the kernel unsent: a queue behind the socket's, which is in order and so holds all back.
const UNSENT: u32 = 256 << 10;
/// What is read at once.
const READ: usize = 64 << 10;

/// The address of a relay whose name this machine cannot look up, and a proxy may: of RFC 6666, where everything is
/// discarded.
pub const NOWHERE: IpAddr = IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1));

/// A relay that is to be reached.
#[derive(Debug, Clone)]
pub struct Target {
    /// Who it has to be.
    pub relay: NodeId,
    /// Where it is.
    pub place: HostPort,
    /// Its address, if that is known.
    pub address: Option<SocketAddr>,
}

/// A connection that stands.
pub struct Connected {
    pub(super) socket: WebSocket<Tls>,
    /// How, in words.
    pub by: String,
    /// A proxy is on the way.
    pub by_proxy: bool,
}

/// One way.
enum Way {
    Direct(SocketAddr),
    Proxy(Proxy),
}

/// Connects; blocks until one way stands, or all have failed.
///
/// # Errors
/// Why each way failed.
pub fn connect(target: &Target) -> Result<Connected, String> {
    let (done, ends) = mpsc::channel();
    let begin = |way: Way| {
        let (target, done) = (target.clone(), done.clone());
        let thread = std::thread::Builder::new().name("sm-connect".into()).spawn(move || {
            let result = attempt(&target, &way);
            let (by, by_proxy) = match way {
                Way::Direct(to) => (format!("tcp {to}"), false),
                Way::Proxy(proxy) => (format!("tcp by {proxy}"), true),
            };
            let result = result.map(|socket| Connected { socket, by: by.clone(), by_proxy });
            // If nobody listens any more, another way was faster.
            let _late = done.send(result.map_err(|e| format!("{by}: {e}")));
        });
        usize::from(thread.is_ok())
    };
    let proxy = proxy::for_host(target.place.host());
    let mut ways: Vec<Way> = addresses(target, proxy.is_some()).into_iter().map(Way::Direct).collect();
    if let Some(proxy) = proxy {
        // Before a second address; and first, where it was needed before.
        let at = if super::was_needed(&target.relay) == Some(true) { 0 } else { ways.len().min(1) };
        ways.insert(at, Way::Proxy(proxy));
    }
    if ways.is_empty() {
        return Err(format!("{} has no address", target.place.host()));
    }
    let (mut ways, mut failed) = (ways.into_iter(), vec![]);
    let (mut started, mut waited) = (0, Duration::ZERO);
    let mut next = ways.next();
    loop {
        if let Some(way) = next.take() {
            started += begin(way);
        }
        match ends.recv_timeout(APART) {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(why)) => {
                failed.push(why);
                next = ways.next();
            }
            Err(RecvTimeoutError::Timeout) => {
                waited += APART;
                next = ways.next();
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if next.is_none() && failed.len() >= started || waited >= PATIENCE {
            break;
        }
    }
    Err(failed.join("; "))
}

/// The known address, or what the name stands for. Who has a proxy may have no name service, which may be silent for long.
fn addresses(target: &Target, has_proxy: bool) -> Vec<SocketAddr> {
    match target.address {
        Some(address) if address.ip() == NOWHERE => vec![],
        Some(address) => vec![address],
        None if has_proxy => vec![],
        None => {
            let found = (target.place.host(), target.place.port()).to_socket_addrs();
            found.into_iter().flatten().take(ADDRESSES).collect()
        }
    }
}

fn attempt(target: &Target, way: &Way) -> io::Result<WebSocket<Tls>> {
    let tcp = match way {
        Way::Direct(address) => TcpStream::connect_timeout(address, STEP)?,
        Way::Proxy(proxy) => {
            let mut tcp = open(&proxy.place)?;
            limit(&tcp)?;
            proxy::tunnel(&mut tcp, proxy, &target.place)?;
            tcp
        }
    };
    limit(&tcp)?;
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let name = ServerName::try_from(target.place.host().to_owned()).map_err(io::Error::other)?;
    let config = CONFIG.clone().map_err(io::Error::other)?;
    let mut tls = Tls::new(ClientConnection::new(config, name).map_err(io::Error::other)?, tcp);
    tls.shake_hands()?;
    let certificate = tls.certificate()?;
    let url = format!("wss://{}{}", target.place, stream::path(&target.relay));
    let limits = WebSocketConfig::default()
        .read_buffer_size(READ)
        .write_buffer_size(MAX_MESSAGE)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    let (mut socket, _) = client_with_config(url.as_str(), tls, Some(limits))
        .map_err(|e| invalid(format!("it takes no WebSocket: {e}")))?;
    match socket.read() {
        Ok(Message::Binary(proof)) if stream::is_certified(&target.relay, &certificate, &proof) => {}
        Ok(_) => {
            return Err(invalid(
                "the TLS certificate is not the relay's: something on the way opens TLS".into(),
            ));
        }
        Err(e) => return Err(invalid(e.to_string())),
    }
    let tcp = socket.get_ref().socket();
    tcp.set_nonblocking(true)?;
    Ok(socket)
}

fn open(place: &HostPort) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "it has no address");
    for address in (place.host(), place.port()).to_socket_addrs()?.take(ADDRESSES) {
        match TcpStream::connect_timeout(&address, STEP) {
            Ok(tcp) => return Ok(tcp),
            Err(e) => last = e,
        }
    }
    Err(last)
}

fn limit(tcp: &TcpStream) -> io::Result<()> {
    let options = SockRef::from(tcp);
    options.set_tcp_nodelay(true)?;
    options.set_tcp_notsent_lowat(UNSENT)?;
    options.set_tcp_user_timeout(Some(STALLED))?;
    tcp.set_read_timeout(Some(STEP))?;
    tcp.set_write_timeout(Some(STEP))
}

static CONFIG: LazyLock<Result<Arc<ClientConfig>, String>> = LazyLock::new(|| {
    let mut provider = default_provider();
    provider.kx_groups = vec![kx_group::X25519MLKEM768];
    let provider = Arc::new(provider);
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ByTheRelay(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
});

/// Any certificate whose key the server has: whose it is, the relay's signature says, which comes next.
#[derive(Debug)]
struct ByTheRelay(Arc<CryptoProvider>);

impl ServerCertVerifier for ByTheRelay {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _above: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 alone is spoken".into()))
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

/// A socket that is read in large pieces.
struct Wire(BufReader<TcpStream>);

impl Read for Wire {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl Write for Wire {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.get_mut().write(buf)
    }

    fn write_vectored(&mut self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.0.get_mut().write_vectored(bufs)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// TLS over a socket, where each direction goes on while the other waits.
pub(super) struct Tls {
    connection: ClientConnection,
    wire: Wire,
}

impl Tls {
    fn new(mut connection: ClientConnection, tcp: TcpStream) -> Self {
        connection.set_buffer_limit(Some(2 * MAX_MESSAGE));
        Tls { connection, wire: Wire(BufReader::with_capacity(READ, tcp)) }
    }

    pub fn socket(&self) -> &TcpStream {
        self.wire.0.get_ref()
    }

    fn shake_hands(&mut self) -> io::Result<()> {
        while self.connection.is_handshaking() {
            self.connection.complete_io(&mut self.wire)?;
        }
        Ok(())
    }

    fn certificate(&self) -> io::Result<Vec<u8>> {
        let chain = self.connection.peer_certificates().unwrap_or_default();
        chain.first().map(|c| c.to_vec()).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn push(&mut self) -> io::Result<()> {
        while self.connection.wants_write() {
            self.connection.write_tls(&mut self.wire)?;
        }
        Ok(())
    }
}

impl Read for Tls {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.connection.reader().read(buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
            self.connection.read_tls(&mut self.wire)?;
            let invalid = |e| io::Error::new(io::ErrorKind::InvalidData, e);
            self.connection.process_new_packets().map_err(invalid)?;
        }
    }
}

impl Write for Tls {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let blocked = |e: &io::Error| e.kind() == io::ErrorKind::WouldBlock;
        match self.push() {
            Err(e) if !blocked(&e) => return Err(e),
            _ => {}
        }
        let taken = self.connection.writer().write(buf)?;
        if taken == 0 && !buf.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        match self.push() {
            Err(e) if !blocked(&e) => Err(e),
            _ => Ok(taken),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.push()
    }
}
