//! The control API's server: who may ask what, and the answers.

use super::netcheck::{self, Extent};
use super::{Daemon, admin, make, network, why};
use crate::engine::Engine;
use axum::body::Body;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{Path, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::serve::IncomingStream;
use axum::{Json, Router};
use shadowmesh_control::{
    CreateNetwork, Exit, HOST, Identity, Join, Line, Netcheck, NetworkIdentity, NetworkStatus, Ping,
    PingReply, Problem, Status, Why,
};
use shadowmesh_host::peercred::{self, PeerCred};
use shadowmesh_host::privilege;
use shadowmesh_identity::{Name, NodeId};
use shadowmesh_proto::handshake::Source;
use std::convert::Infallible;
use std::ffi::CString;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tracing::error;

/// A ping without an answer by then is lost.
const PING_WAIT: Duration = Duration::from_secs(5);
/// Between pings.
const PING_EVERY: Duration = Duration::from_secs(1);
/// The same, while a path without relay is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(200);

pub(super) type Shared = State<Arc<Daemon>>;

/// A problem as an answer.
pub struct Refused(pub Problem);

impl From<Problem> for Refused {
    fn from(p: Problem) -> Self {
        Refused(p)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = match self.0.exit {
            Exit::Usage | Exit::Config => StatusCode::BAD_REQUEST,
            Exit::NotPermitted | Exit::Refused => StatusCode::FORBIDDEN,
            Exit::NoAnswer => StatusCode::GATEWAY_TIMEOUT,
            Exit::Failed | Exit::NotRunning => StatusCode::CONFLICT,
        };
        (status, Json(self.0)).into_response()
    }
}

/// Who is at the other end; nothing when the kernel would not say.
#[derive(Clone)]
struct Caller(Option<PeerCred>);

impl Connected<IncomingStream<'_, UnixListener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Caller(peercred::of(stream.io()).ok())
    }
}

pub async fn serve(daemon: Arc<Daemon>, listener: UnixListener) {
    let router = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/identity", get(identity))
        .route("/v1/shutdown", post(shutdown))
        .route("/v1/identity/backup", post(admin::backup))
        .route("/v1/identity/restore", post(admin::restore))
        .route("/v1/networks", post(create))
        .route("/v1/join", post(join))
        .route("/v1/networks/{network}", get(one_network).delete(admin::leave))
        .route("/v1/networks/{network}/up", post(admin::up))
        .route("/v1/networks/{network}/down", post(admin::down))
        .route("/v1/networks/{network}/invites", get(admin::invites).post(admin::create_invite))
        .route("/v1/networks/{network}/invites/{id}", delete(admin::cancel_invite))
        .route("/v1/networks/{network}/revoke", post(admin::revoke))
        .route("/v1/networks/{network}/ping", post(ping))
        .route("/v1/networks/{network}/why/{peer}", get(why))
        .route("/v1/networks/{network}/netcheck", get(check))
        .fallback(unknown)
        .layer(middleware::from_fn_with_state(daemon.clone(), guard))
        .with_state(daemon);
    let service = router.into_make_service_with_connect_info::<Caller>();
    if let Err(e) = axum::serve(listener, service).await {
        error!("the control socket is no longer served: {e}");
    }
}

async fn unknown() -> Refused {
    Refused(Problem::new(
        Exit::Usage,
        "this daemon does not know that request; it may be older than the command",
    ))
}

/// Lets through who may. A browser, whatever page it shows, cannot set this `Host` and leaves an `Origin`.
async fn guard(
    State(daemon): Shared,
    ConnectInfo(Caller(caller)): ConnectInfo<Caller>,
    request: Request,
    next: Next,
) -> Response {
    let headers = request.headers();
    let host = headers.get(header::HOST).is_some_and(|h| h.as_bytes() == HOST.as_bytes());
    if !host || headers.contains_key(header::ORIGIN) {
        let p = Problem::new(Exit::NotPermitted, "requests of browsers and proxies are not answered");
        return Refused(p).into_response();
    }
    let reads = request.method() == Method::GET || request.uri().path().ends_with("/ping");
    let allowed = caller.is_some_and(|c| daemon.may_change(&c) || (reads && may_read(&c)));
    if !allowed {
        let p = Problem::new(
            Exit::NotPermitted,
            "this user may not do that; root and the operator may change things, the group `shadowmesh` may look",
        )
        .fix("Run it as root:  sudo shadowmesh …")
        .fix("or make this user the operator: `operator` in the configuration");
        return Refused(p).into_response();
    }
    next.run(request).await
}

impl Daemon {
    fn may_change(&self, caller: &PeerCred) -> bool {
        caller.uid == 0 || caller.uid == self.started_by || Some(caller.uid) == self.operator()
    }

    /// The network that is meant, and its engine.
    pub(super) async fn engine(&self, name: &str) -> Result<(Name, Arc<Engine>), Problem> {
        let networks = self.networks.lock().await;
        let network = name.parse::<Name>().ok().and_then(|n| networks.get(&n));
        let network = network.ok_or_else(|| no_network(name))?;
        let engine = network.engine.clone().ok_or_else(|| {
            if let Some(ended) = network.failure.as_ref().filter(|_| network.is_ended()) {
                return ended.clone();
            }
            let why = network.failure.as_ref().map_or("it is down", |p| &p.what);
            Problem::failed(format!("\"{name}\" is not up: {why}")).fix("Bring it up:  sudo shadowmesh up")
        })?;
        Ok((network.name.clone(), engine))
    }
}

pub(super) fn no_network(name: &str) -> Problem {
    Problem::new(Exit::Usage, format!("there is no network \"{name}\" here"))
        .fix("See which there are:  shadowmesh network list")
}

/// A member of the group `shadowmesh` may look.
fn may_read(caller: &PeerCred) -> bool {
    let Ok(Some(group)) = nix::unistd::Group::from_name(privilege::USER) else { return false };
    if caller.gid == group.gid.as_raw() {
        return true;
    }
    let Ok(Some(user)) = nix::unistd::User::from_uid(caller.uid.into()) else { return false };
    CString::new(user.name)
        .ok()
        .and_then(|name| nix::unistd::getgrouplist(&name, user.gid).ok())
        .is_some_and(|groups| groups.contains(&group.gid))
}

async fn status(State(daemon): Shared) -> Json<Status> {
    Json(daemon.status().await)
}

async fn one_network(
    State(daemon): Shared,
    Path(name): Path<String>,
) -> Result<Json<NetworkStatus>, Refused> {
    Ok(Json(status_of(&daemon, &name).await?))
}

/// What is shown of one network.
pub(super) async fn status_of(daemon: &Daemon, name: &str) -> Result<NetworkStatus, Problem> {
    let (resting, engine, carried) = {
        let networks = daemon.networks.lock().await;
        let network =
            name.parse::<Name>().ok().and_then(|n| networks.get(&n)).ok_or_else(|| no_network(name))?;
        (network.resting(), network.engine.clone(), network.carried())
    };
    Ok(super::show(resting, engine, carried).await)
}

async fn create(State(daemon): Shared, Json(asked): Json<CreateNetwork>) -> Response {
    stream(move |lines| make::create(daemon, asked, lines))
}

async fn join(State(daemon): Shared, Json(asked): Json<Join>) -> Response {
    stream(move |lines| make::join(daemon, asked, lines))
}

async fn identity(State(daemon): Shared) -> Result<Json<Identity>, Refused> {
    let seed = daemon.state.seed()?.is_some();
    let mut networks = vec![];
    for n in daemon.networks.lock().await.values() {
        networks.push(NetworkIdentity {
            network: n.name.to_string(),
            device: n.meta.device.clone(),
            node: n.node.to_string(),
            root: n.meta.root.is_some(),
        });
    }
    Ok(Json(Identity { schema: "shadowmesh/identity-show/1".into(), seed, networks }))
}

async fn shutdown(State(daemon): Shared) -> Json<serde_json::Value> {
    // The answer goes out first.
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(50)).await;
        daemon.stop.notify_one();
    });
    Json(serde_json::json!({ "stopping": true }))
}

/// The member that is meant.
async fn member(engine: &Engine, network: &str, peer: &str) -> Result<NodeId, Problem> {
    let text = peer.to_owned();
    let found = engine.call(move |inside| network::find_peer(inside, &text)).await;
    found.map_err(|e| Problem::failed(e.to_string()))?.ok_or_else(|| {
        Problem::new(Exit::Usage, format!("\"{network}\" has no member \"{peer}\""))
            .fix("See who there is:  shadowmesh peers")
    })
}

async fn why(
    State(daemon): Shared,
    Path((name, peer)): Path<(String, String)>,
) -> Result<Json<Why>, Refused> {
    let (_, engine) = daemon.engine(&name).await?;
    let node = member(&engine, &name, &peer).await?;
    let mapping = daemon.port_mapping(&name).await;
    let carried = daemon.carried(&name).await;
    let asked = engine.call(move |inside| why::answer(inside, &node, &mapping, &carried));
    let answer = asked.await.map_err(|e| Problem::failed(e.to_string()))?;
    let answer = answer.ok_or_else(|| {
        Problem::failed(format!("\"{peer}\" is not a peer: that is this node, or it was revoked"))
    })?;
    Ok(Json(answer))
}

async fn check(State(daemon): Shared, Path(name): Path<String>) -> Result<Json<Netcheck>, Refused> {
    let (_, engine) = daemon.engine(&name).await?;
    let gone = |e: crate::engine::Gone| Problem::failed(e.to_string());
    // One at a time, whoever asks: each has a dozen sockets.
    let _one_at_a_time = daemon.checking.lock().await;
    let relays = engine.call(|inside| inside.endpoint.node.relay_status()).await.map_err(gone)?;
    let servers = netcheck::servers(&relays, &daemon.stun_servers(), Extent::All);
    let findings = netcheck::look(&servers, Extent::All).await;
    let mapping = daemon.port_mapping(&name).await;
    Ok(Json(netcheck::report(&findings, &servers, &relays, &mapping)))
}

async fn ping(
    State(daemon): Shared,
    Path(name): Path<String>,
    Json(asked): Json<Ping>,
) -> Result<Response, Refused> {
    let (_, engine) = daemon.engine(&name).await?;
    let node = member(&engine, &name, &asked.peer).await?;
    Ok(stream(move |lines| async move {
        let mut answered = 0;
        let count = asked.count.clamp(1, 1_000_000);
        for number in 1..=count {
            let (to, mut pongs) = mpsc::channel(1);
            let sent = engine.call(move |inside| {
                let id = inside.ping(&node, to);
                let places: Vec<_> =
                    inside.endpoint.node.relay_status().into_iter().map(|r| r.place).collect();
                (id, places)
            });
            let (id, places) = sent.await.map_err(|e| Problem::failed(e.to_string()))?;
            if id.is_none() {
                return Err(Problem::failed(format!(
                    "\"{}\" is not a peer: that is this node, or it was revoked",
                    asked.peer
                )));
            }
            let (wait, every) =
                if asked.until_direct { (LOOK_EVERY, LOOK_EVERY) } else { (PING_WAIT, PING_EVERY) };
            let began = tokio::time::Instant::now();
            let pong = tokio::time::timeout(wait, pongs.recv()).await.ok().flatten();
            let mut reply = PingReply { number, rtt: None, path: None, via: None };
            if let Some(pong) = pong {
                answered += 1;
                reply.rtt = Some(pong.rtt.as_secs_f64());
                let (path, via) = match pong.source {
                    Source::Udp(a) => ("direct", Some(a.to_string())),
                    Source::Relay { relay, .. } => {
                        ("relay", places.get(relay as usize).map(ToString::to_string))
                    }
                };
                (reply.path, reply.via) = (Some(path.into()), via);
            }
            let direct = reply.path.as_deref() == Some("direct");
            if lines.send(Line::Reply(reply)).await.is_err() {
                break;
            }
            if asked.until_direct && direct {
                return Ok(serde_json::json!({ "sent": number, "answered": answered }));
            }
            if number < count {
                let next = if asked.until_direct { began } else { tokio::time::Instant::now() };
                tokio::time::sleep_until(next + every).await;
            }
        }
        if asked.until_direct && answered > 0 {
            return Err(Problem::new(Exit::NoAnswer, format!("\"{}\" answers by a relay alone", asked.peer))
                .fix(format!("See why:  shadowmesh why {}", asked.peer)));
        }
        if answered == 0 {
            return Err(Problem::new(Exit::NoAnswer, format!("\"{}\" did not answer", asked.peer))
                .fix("See how it is reached:  shadowmesh status"));
        }
        Ok(serde_json::json!({ "sent": count, "answered": answered }))
    }))
}

/// An answer in lines, made by a task; the last line says how it ended.
pub(super) fn stream<F, T>(task: T) -> Response
where
    T: FnOnce(mpsc::Sender<Line>) -> F,
    F: Future<Output = Result<serde_json::Value, Problem>> + Send + 'static,
{
    let (lines, received) = mpsc::channel::<Line>(16);
    let work = task(lines.clone());
    tokio::spawn(async move {
        let last = match work.await {
            Ok(value) => Line::Done(value),
            Err(p) => Line::Problem(p),
        };
        let _asker_went_away = lines.send(last).await;
    });
    let body = futures_util::stream::unfold(received, |mut received| async move {
        let line = received.recv().await?;
        let mut text = serde_json::to_vec(&line).unwrap_or_default();
        text.push(b'\n');
        Some((Ok::<_, Infallible>(text), received))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(body)).into_response()
}
