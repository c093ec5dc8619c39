//! `/metrics`, `/health`, `/ready`, `/live`, on a thread of their own. What they say comes from the packet loop at the
//! moment of the question, so that a loop that stands still cannot look alive.

use crate::metrics::Report;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use shadowmesh_host::wake::Waker;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// The packet loop answers within, or does not live.
const PATIENCE: Duration = Duration::from_secs(2);
/// Questions waiting at once.
const MAX_WAITING: usize = 64;

/// Where questions wait for the packet loop.
#[derive(Clone)]
pub struct Desk {
    waker: Waker,
    waiting: Arc<Mutex<Vec<oneshot::Sender<Report>>>>,
}

impl Desk {
    /// `waker` wakes the packet loop.
    pub fn new(waker: Waker) -> Self {
        Desk { waker, waiting: Arc::default() }
    }

    /// Answers all questions so far.
    pub fn answer(&self, report: impl Fn() -> Report) {
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        for asker in waiting {
            // Who asked may have gone.
            let _gone = asker.send(report());
        }
    }

    async fn ask(&self) -> Option<Report> {
        let (send, receive) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.len() >= MAX_WAITING {
                return None;
            }
            waiting.push(send);
        }
        self.waker.wake();
        tokio::time::timeout(PATIENCE, receive).await.ok()?.ok()
    }
}

/// Serves on a listener that is bound already, until the process ends.
pub fn serve(listener: TcpListener, desk: Desk) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("http".into()).spawn(move || {
        runtime.block_on(async {
            let served =
                async { axum::serve(tokio::net::TcpListener::from_std(listener)?, router(desk)).await };
            if let Err(e) = served.await {
                tracing::error!("the metrics server has ended: {e}");
            }
        });
    })?;
    Ok(())
}

fn router(desk: Desk) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/live", get(live))
        .with_state(desk)
}

const STILL: &str = "the packet loop does not answer\n";

async fn metrics(State(desk): State<Desk>) -> Response {
    let Some(report) = desk.ask().await else {
        return (StatusCode::SERVICE_UNAVAILABLE, STILL).into_response();
    };
    match report.render() {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")).into_response(),
    }
}

async fn health(State(desk): State<Desk>) -> Response {
    let Some(report) = desk.ask().await else {
        return (StatusCode::SERVICE_UNAVAILABLE, STILL).into_response();
    };
    let status = if report.saved { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let (clients, anonymous) = report.clients();
    let body = serde_json::json!({
        "schema": "shadowmesh/relay-health/1",
        "healthy": report.saved,
        "state_saved": report.saved,
        "fullness": report.fullness,
        "clients": clients,
        "anonymous": anonymous,
        "networks": report.networks(),
        "uptime": report.uptime,
    });
    (status, Json(body)).into_response()
}

/// Ready: it can take on more.
async fn ready(State(desk): State<Desk>) -> Response {
    match desk.ask().await {
        Some(r) if r.saved && r.fullness < 1.0 => (StatusCode::OK, "ready\n").into_response(),
        Some(r) if r.saved => (StatusCode::SERVICE_UNAVAILABLE, "full\n").into_response(),
        Some(_) => (StatusCode::SERVICE_UNAVAILABLE, "the state cannot be saved\n").into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, STILL).into_response(),
    }
}

async fn live(State(desk): State<Desk>) -> Response {
    match desk.ask().await {
        Some(_) => (StatusCode::OK, "live\n").into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, STILL).into_response(),
    }
}
