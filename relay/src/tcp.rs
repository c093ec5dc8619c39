//! TCP for clients whose UDP is blocked: WebSocket over TLS 1.3, on a thread of its own. What comes in is handed to the
//! packet loop (`streams.rs`), and what that sends goes out. Who does not know the relay's NodeId finds a web server
//! without a page. [P-TCP]

use crate::streams::{Hub, Place};
use crate::tls::{ACME_ALPN, Showing, Tls};
use futures_util::{SinkExt, StreamExt};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use shadowmesh_crypto::secret::Secret;
use shadowmesh_host::clock::Clock;
use shadowmesh_proto::Time;
use shadowmesh_proto::handshake::{Limits, Source};
use shadowmesh_relay_core::prefix;
use shadowmesh_wire::stream::MAX_MESSAGE;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tracing::{debug, warn};

/// From the first byte to the WebSocket.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// A connection that says nothing for so long is closed: clients ask their relay every 15 s.
const IDLE: Duration = Duration::from_secs(90);
/// One that takes nothing for so long, too.
const STALLED: Duration = Duration::from_secs(20);
/// What is read from a socket at once, of TLS, and of WebSocket: each connection holds that.
const READ: usize = 32 << 10;
const READ_INSIDE: usize = 16 << 10;
/// Bytes of a request: it is one of ours, or a browser's.
const REQUEST: usize = 16 << 10;
/// What waits in the kernel unsent: a queue behind ours, which is in order and so holds all back.
const UNSENT: u32 = 256 << 10;
/// Connections from one prefix at once, beyond `limits.handshakes_per_address` a second.
const BURST: f64 = 100.0;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

type Stream = TlsStream<BufReader<TcpStream>>;

/// What connections are bounded by.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// At once.
    pub connections: usize,
    /// And of one IPv4 address or IPv6 /56.
    pub each: usize,
    /// New ones of such a prefix, a second.
    pub rate: f64,
}

/// Listens. `[::]` beside other addresses is left out where the machine has no IPv6.
pub fn bind(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, (SocketAddr, io::Error)> {
    let mut all = vec![];
    for address in addresses {
        match listen(*address) {
            Ok(listener) => all.push(listener),
            Err(e)
                if address.is_ipv6()
                    && address.ip().is_unspecified()
                    && addresses.len() > 1
                    && matches!(e.raw_os_error(), Some(libc) if libc == nix::errno::Errno::EAFNOSUPPORT as i32
                        || libc == nix::errno::Errno::EADDRNOTAVAIL as i32) => {}
            Err(e) => return Err((*address, e)),
        }
    }
    Ok(all)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Connections of the relay before linger.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Serves on listeners that are bound already, until the process ends. `path` is where WebSockets are taken.
pub fn serve(
    listeners: Vec<TcpListener>,
    showing: Arc<Showing>,
    path: String,
    bounds: Bounds,
    hub: Hub,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let door = Arc::new(Door::new(bounds));
    let house = Arc::new(House { showing, path, hub });
    std::thread::Builder::new().name("tcp".into()).spawn(move || {
        runtime.block_on(async {
            let all = listeners.into_iter().map(|l| accept(l, door.clone(), house.clone()));
            futures_util::future::join_all(all).await;
        });
    })?;
    Ok(())
}

async fn accept(listener: TcpListener, door: Arc<Door>, house: Arc<House>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(e) => return warn!("tcp cannot be served: {e}"),
    };
    loop {
        match listener.accept().await {
            Ok((socket, from)) => {
                let Some(guest) = door.let_in(from) else { continue };
                let house = house.clone();
                tokio::spawn(async move {
                    if let Err(e) = house.host(socket, from).await {
                        debug!("a connection over tcp has ended: {e}");
                    }
                    drop(guest);
                });
            }
            Err(e) => {
                // Descriptors have run out, mostly; those that close make room.
                debug!("a connection was not accepted: {e}");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Counts connections, and lets no more in than may be.
struct Door {
    bounds: Bounds,
    clock: Clock,
    inside: Mutex<Inside>,
}

struct Inside {
    all: usize,
    each: HashMap<[u8; 8], usize>,
    rate: Limits,
}

impl Door {
    fn new(bounds: Bounds) -> Self {
        let rate = Limits::new(*Secret::random().expose(), bounds.rate, BURST.max(bounds.rate));
        let inside = Mutex::new(Inside { all: 0, each: HashMap::new(), rate });
        Door { bounds, clock: Clock::new(), inside }
    }

    fn let_in(self: &Arc<Self>, from: SocketAddr) -> Option<Guest> {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let prefix = prefix(from.ip());
        let here = inside.each.get(&prefix).copied().unwrap_or(0);
        let now = Time(0) + self.clock.now();
        let full = inside.all >= self.bounds.connections || here >= self.bounds.each;
        if full || !inside.rate.allow(now, &Source::Udp(from)) {
            return None;
        }
        inside.all += 1;
        inside.each.insert(prefix, here + 1);
        Some(Guest { door: self.clone(), prefix })
    }
}

/// A connection that was let in; counted until it is dropped.
struct Guest {
    door: Arc<Door>,
    prefix: [u8; 8],
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut inside = self.door.inside.lock().unwrap_or_else(PoisonError::into_inner);
        inside.all = inside.all.saturating_sub(1);
        let left = inside.each.get(&self.prefix).map_or(0, |n| n.saturating_sub(1));
        if left == 0 {
            inside.each.remove(&self.prefix);
        } else {
            inside.each.insert(self.prefix, left);
        }
    }
}

/// What a connection needs.
struct House {
    showing: Arc<Showing>,
    path: String,
    hub: Hub,
}

/// Why a connection has ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("it took too long")]
    Slow,
    #[error("it asked for something else")]
    Other,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("{0}")]
    WebSocket(#[from] tokio_tungstenite::tungstenite::Error),
}

impl House {
    async fn host(&self, socket: TcpStream, from: SocketAddr) -> Result<(), Ended> {
        let options = SockRef::from(&socket);
        options.set_tcp_nodelay(true)?;
        options.set_tcp_notsent_lowat(UNSENT)?;
        options.set_tcp_user_timeout(Some(STALLED))?;
        let tls = self.showing.now();
        let stream = timeout(HANDSHAKE, self.open(&tls, socket)).await.map_err(|_| Ended::Slow)??;
        let place = self.hub.enter(from.ip());
        self.carry(stream, &place, Bytes::copy_from_slice(&tls.proof)).await
    }

    /// TLS, then HTTP up to the WebSocket.
    async fn open(&self, tls: &Tls, socket: TcpStream) -> Result<WebSocketStream<Stream>, Ended> {
        let acceptor = TlsAcceptor::from(tls.config.clone());
        let tls = acceptor.accept(BufReader::with_capacity(READ, socket)).await?;
        if tls.get_ref().1.alpn_protocol() == Some(ACME_ALPN) {
            // An authority has seen what it wanted.
            return Err(Ended::Other);
        }
        let upgrade: Mutex<Option<OnUpgrade>> = Mutex::default();
        let service = service_fn(|mut request: Request<Incoming>| {
            let (answer, taken) = answer(&self.path, &mut request);
            *upgrade.lock().unwrap_or_else(PoisonError::into_inner) = taken;
            async { Ok::<_, Infallible>(answer) }
        });
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HANDSHAKE).max_buf_size(REQUEST);
        http.serve_connection(TokioIo::new(tls), service).with_upgrades().await?;
        let taken = upgrade.lock().unwrap_or_else(PoisonError::into_inner).take().ok_or(Ended::Other)?;
        let parts = taken.await?.downcast::<TokioIo<Stream>>().map_err(|_| Ended::Other)?;
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_INSIDE)
            .write_buffer_size(MAX_MESSAGE)
            .max_write_buffer_size(4 * MAX_MESSAGE)
            .max_message_size(Some(MAX_MESSAGE))
            .max_frame_size(Some(MAX_MESSAGE));
        let (stream, read) = (parts.io.into_inner(), parts.read_buf.to_vec());
        Ok(WebSocketStream::from_partially_read(stream, read, Role::Server, Some(config)).await)
    }

    /// Both ways, until one ends.
    async fn carry(&self, stream: WebSocketStream<Stream>, place: &Place, proof: Bytes) -> Result<(), Ended> {
        let (mut sink, mut source) = stream.split();
        let receive = async {
            loop {
                let message = timeout(IDLE, source.next()).await.map_err(|_| Ended::Slow)?;
                match message.ok_or(Ended::Other)?? {
                    Message::Binary(bytes) => {
                        if !self.hub.deliver(place.address, bytes.into()).await {
                            return Ok(());
                        }
                    }
                    Message::Ping(_) | Message::Pong(_) => {}
                    Message::Close(_) => return Ok(()),
                    Message::Text(_) | Message::Frame(_) => return Err(Ended::Other),
                }
            }
        };
        let send = async {
            sink.send(Message::Binary(proof)).await?;
            loop {
                let waiting = place.waiting().await;
                let sent = async {
                    for message in waiting {
                        sink.feed(Message::Binary(message.into())).await?;
                    }
                    sink.flush().await
                };
                timeout(STALLED, sent).await.map_err(|_| Ended::Slow)??;
            }
        };
        tokio::select! {
            ended = receive => ended,
            ended = send => ended,
        }
    }
}

/// The one request that there is something for, and what all others get.
fn answer(path: &str, request: &mut Request<Incoming>) -> (Response<Full<Bytes>>, Option<OnUpgrade>) {
    let is = |name, value: &str| {
        let text = request.headers().get(name).and_then(|v| v.to_str().ok());
        text.is_some_and(|t| t.eq_ignore_ascii_case(value))
    };
    let wanted = request.method() == Method::GET
        && request.uri().path() == path
        && is(header::UPGRADE, "websocket")
        && is(header::SEC_WEBSOCKET_VERSION, "13");
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY).filter(|_| wanted);
    let accept = key.and_then(|k| HeaderValue::from_str(&derive_accept_key(k.as_bytes())).ok());
    let mut response = Response::new(Full::default());
    let headers = response.headers_mut();
    match accept {
        Some(accept) => {
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            (response, Some(hyper::upgrade::on(request)))
        }
        None => {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
            *response.status_mut() = StatusCode::NOT_FOUND;
            *response.body_mut() = Full::from("404 Not Found\n");
            (response, None)
        }
    }
}
