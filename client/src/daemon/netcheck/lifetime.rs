//! How long what is between keeps the mapping of a silent socket (RFC 5780 section 4.6): a socket of its own for each time
//! that is tried, all at once. When its time has come, another socket has the server answer to it (RESPONSE-PORT).

use super::{AGAIN, Question, SENDS, ask, bind, id, is_from};
use shadowmesh_control::NetcheckLifetime;
use shadowmesh_stun::{MAX, parse_response, request_to};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

/// Seconds that are tried. Keepalives go every 15; RFC 4787 wants 120; many firewalls keep 30 or 60.
const STEPS: [u64; 11] = [10, 20, 30, 45, 60, 90, 110, 130, 180, 300, 600];
/// Exchanges before the silence, and what is between them: a router keeps what was used for a while longer than the answer
/// to one question (Linux: two seconds).
const USES: u32 = 4;
const BETWEEN: Duration = Duration::from_secs(1);

/// A socket, where it is seen outside, and when it was used last.
struct Mapped {
    socket: UdpSocket,
    outside: SocketAddr,
    used: Instant,
}

/// Tries all steps up to `most` seconds, and tells after each for how long it was kept. Ends with the first that was not.
pub async fn lifetime(server: SocketAddr, most: u64, mut kept: impl FnMut(u64)) -> NetcheckLifetime {
    let mut found = NetcheckLifetime::default();
    let steps: Vec<u64> = STEPS.into_iter().filter(|s| *s <= most).collect();
    // The first is for a look whether the server does what it is asked for.
    let mapped = futures_util::future::join_all((0..=steps.len()).map(|_| used(server))).await;
    let mut mapped: Vec<Mapped> = mapped.into_iter().flatten().collect();
    let asks = bind(&server).await.ok();
    let (Some(asks), true) = (asks, mapped.len() > steps.len()) else {
        found.problem = Some(format!("{server} did not answer"));
        return found;
    };
    match seen(&asks, server).await {
        Some(outside) if mapped.iter().all(|m| m.outside.ip() == outside.ip()) => {}
        Some(_) => {
            found.problem = Some("the router has more than one address outside, and takes turns".into());
            return found;
        }
        None => {
            found.problem = Some(format!("{server} did not answer"));
            return found;
        }
    }
    if !reaches(&asks, server, &mapped.remove(0)).await {
        found.problem = Some(format!("{server} does not answer to another port (RESPONSE-PORT of RFC 5780)"));
        return found;
    }
    for (seconds, mapped) in steps.into_iter().zip(mapped) {
        sleep_until(mapped.used + Duration::from_secs(seconds)).await;
        if reaches(&asks, server, &mapped).await {
            found.at_least = Some(seconds);
            kept(seconds);
        } else if seen(&asks, server).await.is_some() {
            found.less_than = Some(seconds);
            break;
        } else {
            found.problem = Some(format!("{server} did not answer any more"));
            break;
        }
    }
    found
}

/// Where a server sees this socket.
async fn seen(socket: &UdpSocket, server: SocketAddr) -> Option<SocketAddr> {
    let answers = ask(socket, &[Question::plain(server)], None, &mut 0).await;
    Some(answers.into_iter().next()??.0.mapped)
}

/// A socket that has been in use for a while.
async fn used(server: SocketAddr) -> Option<Mapped> {
    let socket = bind(&server).await.ok()?;
    let mut outside = None;
    for n in 0..USES {
        if n > 0 {
            sleep(BETWEEN).await;
        }
        outside = seen(&socket, server).await;
    }
    Some(Mapped { socket, outside: outside?, used: Instant::now() })
}

/// Does what the server sends reach the socket, which itself sends nothing?
async fn reaches(asks: &UdpSocket, server: SocketAddr, mapped: &Mapped) -> bool {
    let mut buffer = [0; MAX + 1];
    let mut sent = vec![];
    for _ in 0..SENDS {
        let again = Instant::now() + AGAIN;
        let id = id();
        sent.push(id);
        // No route, or a firewall here: then nothing comes.
        let _unsent = asks.send_to(&request_to(id, mapped.outside.port()), server).await;
        while let Ok(received) = timeout_at(again, mapped.socket.recv_from(&mut buffer)).await {
            // An error that ICMP left.
            let Ok((length, from)) = received else { continue };
            let ours = |r: &shadowmesh_stun::Response| sent.contains(&r.id) && is_from(from, server);
            if parse_response(&buffer[..length]).as_ref().is_some_and(ours) {
                return true;
            }
        }
    }
    false
}
