//! Asking the daemon.

use crate::{Exit, HOST, Line, Problem};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::ErrorKind;
use std::path::PathBuf;
use tokio::net::UnixStream;

/// No answer of the daemon is longer.
const MAX_ANSWER: usize = 64 << 20;

/// The daemon, as others reach it. A connection for each request.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// The daemon behind this socket.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Client { socket: socket.into() }
    }

    /// Whether a daemon answers.
    ///
    /// # Errors
    ///
    /// [`Problem`] when there is one that may not be asked.
    pub async fn is_running(&self) -> Result<bool, Problem> {
        match self.connect().await {
            Ok(_) => Ok(true),
            Err(p) if p.exit == Exit::NotRunning => Ok(false),
            Err(p) => Err(p),
        }
    }

    /// Reads something.
    ///
    /// # Errors
    ///
    /// [`Problem`], the daemon's own or about reaching it.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Problem> {
        self.request(Method::GET, path, &()).await
    }

    /// Changes something.
    ///
    /// # Errors
    ///
    /// As [`Client::get`].
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Problem> {
        self.request(Method::POST, path, body).await
    }

    /// Removes something.
    ///
    /// # Errors
    ///
    /// As [`Client::get`].
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Problem> {
        self.request(Method::DELETE, path, &()).await
    }

    /// Changes something that takes its time; `each` sees the steps. Gives what stood in the last line.
    ///
    /// # Errors
    ///
    /// As [`Client::get`].
    pub async fn stream(
        &self,
        path: &str,
        body: &impl Serialize,
        mut each: impl FnMut(Line),
    ) -> Result<serde_json::Value, Problem> {
        let mut response = self.send(Method::POST, path, body).await?;
        let mut pending: Vec<u8> = vec![];
        while let Some(frame) = response.frame().await {
            let frame = frame.map_err(|e| broken(&e))?;
            pending.extend_from_slice(frame.data_ref().map_or(&[][..], |d| d));
            while let Some(end) = pending.iter().position(|b| *b == b'\n') {
                let rest = pending.split_off(end + 1);
                let line = std::mem::replace(&mut pending, rest);
                match serde_json::from_slice(&line).map_err(|e| broken(&e))? {
                    Line::Done(value) => return Ok(value),
                    Line::Problem(problem) => return Err(problem),
                    line => each(line),
                }
            }
            if pending.len() > MAX_ANSWER {
                break;
            }
        }
        Err(Problem::failed("the daemon ended before it was done").fix("Look at why:  shadowmesh logs"))
    }

    async fn request<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Problem> {
        let response = self.send(method, path, body).await?;
        let bytes = http_body_util::Limited::new(response, MAX_ANSWER)
            .collect()
            .await
            .map_err(|e| broken(&*e))?
            .to_bytes();
        serde_json::from_slice(&bytes).map_err(|e| broken(&e))
    }

    async fn connect(&self) -> Result<UnixStream, Problem> {
        UnixStream::connect(&self.socket).await.map_err(|e| match e.kind() {
            // Reset: it ends just now.
            ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => {
                Problem::new(Exit::NotRunning, "the daemon is not running")
                    .fix("Start it:  sudo shadowmesh up")
            }
            ErrorKind::PermissionDenied => Problem::new(
                Exit::NotPermitted,
                "this user may not talk to the daemon; root, its operator and the group `shadowmesh` may",
            )
            .fix("Run it as root:  sudo shadowmesh …")
            .fix("or, to read only:  sudo usermod --append --groups shadowmesh $USER"),
            _ => Problem::failed(format!("{} does not answer: {e}", self.socket.display())),
        })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Response<Incoming>, Problem> {
        let stream = self.connect().await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| broken(&e))?;
        tokio::spawn(connection);
        let bytes =
            if method == Method::POST { serde_json::to_vec(body).map_err(|e| broken(&e))? } else { vec![] };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", HOST)
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(bytes)))
            .map_err(|e| broken(&e))?;
        let response = sender.send_request(request).await.map_err(|e| broken(&e))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let bytes = response.into_body().collect().await.map_err(|e| broken(&e))?.to_bytes();
        Err(serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Problem::failed(format!("the daemon answered {status} to {path}"))))
    }
}

fn broken(error: &dyn std::fmt::Display) -> Problem {
    Problem::failed(format!("the daemon's answer was not understood: {error}"))
        .fix("If it was just upgraded, start it anew:  shadowmesh down && shadowmesh up")
}
