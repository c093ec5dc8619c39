//! Against servers on loopback: true ones, a symmetric NAT's, and liars.

use super::behaviour::Depends;
use super::*;
use shadowmesh_stun::answer;
use std::net::SocketAddr;
use tokio::task::JoinHandle;

async fn socket() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").await.unwrap()
}

fn server(socket: &UdpSocket) -> Server {
    let address = socket.local_addr().unwrap();
    Server {
        place: address.to_string().parse().unwrap(),
        relay: Some(NodeId([7; 32])),
        address: Some(address),
    }
}

/// A relay's two ports. They see ports that are shifted by so much, as a symmetric NAT would have it.
fn relay(main: UdpSocket, other: UdpSocket, shifts: [u16; 2]) -> JoinHandle<()> {
    tokio::spawn(async move {
        let (mut one, mut two) = ([0; 600], [0; 600]);
        let ports = [main.local_addr().unwrap().port(), other.local_addr().unwrap().port()];
        loop {
            let (by, from, bytes) = tokio::select! {
                Ok((n, from)) = main.recv_from(&mut one) => (0, from, &one[..n]),
                Ok((n, from)) = other.recv_from(&mut two) => (1, from, &two[..n]),
            };
            let seen = SocketAddr::new(from.ip(), from.port().wrapping_add(shifts[by]).max(1));
            let besides = SocketAddr::from(([0; 4], ports[1 - by]));
            let Some(answer) = answer(bytes, seen, Some(besides)) else { continue };
            let out = if (by == 0) == answer.from_other_port { &other } else { &main };
            out.send_to(&answer.bytes, from).await.unwrap();
        }
    })
}

#[tokio::test]
async fn a_relay_tells_that_there_is_no_nat() {
    let (main, other) = (socket().await, socket().await);
    let servers = [server(&main)];
    let _task = relay(main, other, [0, 0]);
    let began = Instant::now();
    let quick = look(&servers, Extent::Mapping).await;
    assert_eq!((quick.mapping(), quick.four.forged), (Some(Depends::Independent), 0));
    assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
    let all = look(&servers, Extent::All).await;
    assert_eq!((all.mapping(), all.four.filtering), (Some(Depends::Independent), Some(Depends::NotPort)));
    assert_eq!((all.four.mapped(), all.four.hairpin), (all.four.local, None));
    let said = report(&all, &servers, &[], &MappingState::Off);
    let four = said.ipv4.unwrap();
    assert!(said.udp && !four.nat && said.servers[0].second_port && said.ipv6.is_none());
    assert_eq!(four.filtering.as_deref(), Some("not-port-dependent"));
}

#[tokio::test]
async fn who_answers_to_no_other_port_tells_nothing_of_lifetimes() {
    let (main, other) = (socket().await, socket().await);
    let address = main.local_addr().unwrap();
    let _task = relay(main, other, [0, 0]);
    let found = lifetime(address, 600, |_| panic!("nothing was kept")).await;
    assert_eq!((found.at_least, found.less_than), (None, None));
    assert!(found.problem.is_some_and(|p| p.contains("RESPONSE-PORT")));
}

#[tokio::test]
async fn two_ports_that_see_two_ports_tell_a_symmetric_nat() {
    let (main, other) = (socket().await, socket().await);
    let servers = [server(&main)];
    let _task = relay(main, other, [1, 2]);
    let quick = look(&servers, Extent::Mapping).await;
    assert_eq!(told(quick.mapping()), shadowmesh_wire::candidate::Mapping::Dependent);
    let said = report(&quick, &servers, &[], &MappingState::Off);
    assert!(said.advice.contains("symmetric") && said.ipv4.is_some_and(|f| f.nat));
}

#[tokio::test]
async fn nobody_there_is_soon_known() {
    let silent = socket().await;
    let began = Instant::now();
    let found = look(&[server(&silent)], Extent::All).await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!((found.mapping(), found.four.mapped()), (None, None));
    let said = report(&found, &[server(&silent)], &[], &MappingState::Off);
    assert!(!said.udp && said.ipv4.is_none() && said.advice.starts_with("No UDP"), "{said:?}");
    let nowhere = Server { place: "no-such-host.invalid:3478".parse().unwrap(), relay: None, address: None };
    let found = look(std::slice::from_ref(&nowhere), Extent::All).await;
    let said = report(&found, &[nowhere], &[], &MappingState::Off);
    assert!(said.servers[0].problem.is_some());
}

/// Before each true answer come: one with another id, the true one from elsewhere with a lie in it, noise, and what is too
/// long; after it, the lie from the right place, to a question that is answered already.
#[tokio::test]
async fn forged_answers_change_nothing() {
    let (main, forger) = (socket().await, socket().await);
    let servers = [server(&main)];
    let lie: SocketAddr = "203.0.113.66:666".parse().unwrap();
    let liar = tokio::spawn(async move {
        let mut buffer = [0; 600];
        loop {
            let (n, from) = main.recv_from(&mut buffer).await.unwrap();
            let asked = &buffer[..n];
            let truth = answer(asked, from, None).unwrap().bytes;
            let mut false_one = answer(asked, lie, None).unwrap().bytes;
            forger.send_to(&false_one, from).await.unwrap();
            false_one[8] ^= 1;
            main.send_to(&false_one, from).await.unwrap();
            main.send_to(b"noise", from).await.unwrap();
            main.send_to(&[0; 1400], from).await.unwrap();
            main.send_to(&truth, from).await.unwrap();
            false_one[8] ^= 1;
            main.send_to(&false_one, from).await.unwrap();
        }
    });
    let found = look(&servers, Extent::Mapping).await;
    assert_eq!(found.four.mapped(), found.four.local);
    assert_eq!(found.four.seen.len(), 1);
    assert!(found.four.forged >= 4, "{}", found.four.forged);
    liar.abort();
}

#[test]
fn a_server_cannot_send_us_anywhere() {
    let at = |text: &str| text.parse::<SocketAddr>().unwrap();
    let public = at("203.0.113.1:3478");
    assert!(is_another(public, at("203.0.113.2:3479")));
    for other in [
        "203.0.113.1:3479",
        "127.0.0.1:1",
        "192.168.1.1:53",
        "10.0.0.1:1",
        "100.64.0.1:1",
        "224.0.0.1:1",
        "255.255.255.255:1",
        "169.254.169.254:80",
        "0.0.0.0:1",
        "203.0.113.2:0",
        "[2001:db8::1]:1",
    ] {
        assert!(!is_another(public, at(other)), "{other}");
    }
    // One of this LAN may have a second address in it.
    assert!(is_another(at("192.168.1.8:3478"), at("192.168.1.9:3479")));
}
