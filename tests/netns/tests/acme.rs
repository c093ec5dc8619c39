//! A relay with a certificate of a public authority: a real ACME server (pebble) calls on its TCP 443, and a browser's TLS
//! (openssl) takes what it shows then. Clients come before, after, and while it is renewed.
#![allow(clippy::unwrap_used, reason = "a test; clippy exempts only functions marked as such")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use shadowmesh_netns_tests::{
    Internet, Machine, NatKind, Process, RELAY, VPS4, spawn_relay, wait_for_relay, wait_until,
};

/// How long its certificates are good: they are renewed after two thirds.
const SECONDS: u32 = 45;
const AUTHORITY: &str = "authority.test";

fn openssl(arguments: &[&str]) -> String {
    let made = Command::new("openssl").args(arguments).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    String::from_utf8(made.stdout).unwrap()
}

/// The authority, beside the relay; its own certificate is in that directory. It calls on that port.
fn pebble(internet: &Internet, directory: &Path, calls: u16) -> Process {
    let at = |file: &str| directory.join(file).display().to_string();
    let config = format!(
        r#"{{"pebble": {{"listenAddress": "{0}:14000", "managementListenAddress": "{0}:15000",
            "certificate": "{1}", "privateKey": "{2}", "httpPort": 80, "tlsPort": {calls}, "ocspResponderURL": "",
            "certificateValidityPeriod": {SECONDS}}}}}"#,
        VPS4[1],
        at("own.pem"),
        at("own.key")
    );
    std::fs::write(directory.join("pebble.json"), config).unwrap();
    let quick = [("PEBBLE_VA_NOSLEEP", "1")];
    let server = internet.vps.spawn("pebble", "pebble", &["-config", &at("pebble.json")], &quick);
    wait_until("pebble", Duration::from_secs(10), || {
        internet.vps.run("ss", &["-ltn"]).contains(":14000").then_some(())
    });
    server
}

/// What a browser's TLS says of the relay: whether the authority's root vouches for it, and the certificate's number.
fn shown(from: &Machine, root: &str) -> (bool, String) {
    let peer = format!("{RELAY}:443");
    let command = format!(
        "openssl s_client -connect {peer} -servername {RELAY} -verify_hostname {RELAY} -CAfile {root} </dev/null 2>&1"
    );
    let said = from.host.run("sh", &["-c", &command]);
    let serial =
        format!("openssl s_client -connect {peer} </dev/null 2>/dev/null | openssl x509 -noout -serial");
    (said.contains("Verify return code: 0 (ok)"), from.host.run("sh", &["-c", &serial]))
}

fn ends(process: &Process) {
    process.signal(nix::sys::signal::Signal::SIGTERM);
    process.wait(Duration::from_secs(10));
}

fn is_by_tcp(machine: &Machine) -> bool {
    let relay = &machine.json(&["status"])["networks"][0]["relays"][0];
    relay["up"] == true && relay["by"] == "tcp"
}

#[test]
fn an_authority_certifies_the_relay() {
    let mut internet = Internet::new("ACME");
    let directory = internet.lab.directory().join("acme");
    std::fs::create_dir_all(&directory).unwrap();
    let at = |file: &str| directory.join(file).display().to_string();
    let names = format!("/etc/netns/{}", internet.vps.namespace());
    std::fs::create_dir_all(&names).unwrap();
    std::fs::write(format!("{names}/hosts"), format!("{} {RELAY}\n{} {AUTHORITY}\n", VPS4[0], VPS4[1]))
        .unwrap();
    let (own, key, name) = (at("own.pem"), at("own.key"), format!("subjectAltName=DNS:{AUTHORITY}"));
    let made = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=authority"];
    openssl(
        &[
            &made[..],
            &[
                "-addext",
                &name,
                "-addext",
                "basicConstraints=critical,CA:FALSE",
                "-keyout",
                &key,
                "-out",
                &own,
            ],
        ]
        .concat(),
    );
    let config = format!("tls: {{acme: \"https://{AUTHORITY}:14000/dir\", acme_roots: {own}}}\n");
    std::fs::write(directory.join("relay.yaml"), config).unwrap();
    let state = internet.lab.directory().join("relay").display().to_string();
    let with_acme = ["--config".to_owned(), at("relay.yaml")];
    let start = |internet: &mut Internet| {
        ends(&internet.relay);
        internet.relay = spawn_relay(&internet.vps, &state, &with_acme);
        wait_for_relay(&internet.vps);
    };

    // Nobody there to certify: clients come all the same, by what the relay has made itself.
    start(&mut internet);
    let a = internet.machine("a", NatKind::UdpBlocked);
    a.must(&["network", "create", "home", "--relay", &internet.urls[0].clone(), "--device", "a"]);
    internet.relay.wait_for("tried again in 300 s", Duration::from_secs(20));
    wait_until("a", Duration::from_secs(10), || is_by_tcp(&a).then_some(()));

    // One that does not get through to it, as behind a router that forwards nothing.
    let elsewhere = pebble(&internet, &directory, 4443);
    start(&mut internet);
    internet.relay.wait_for("did not reach this relay on TCP 443", Duration::from_secs(20));
    let said = internet.relay.output();
    assert!(said.contains("Failed to connect to 203.0.113.2:4443"), "{said}");
    ends(&elsewhere);

    let authority = pebble(&internet, &directory, 443);
    start(&mut internet);
    internet.relay.wait_for("a certificate was issued", Duration::from_secs(40));
    let root = at("root.pem");
    internet.vps.run("curl", &["-sk", "-o", &root, &format!("https://{}:15000/roots/0", VPS4[1])]);
    let (vouched, first) = shown(&a, &root);
    assert!(vouched, "{}", internet.relay.output());
    wait_until("a", Duration::from_secs(30), || is_by_tcp(&a).then_some(()));

    // Renewed in time, while a connection of before goes on and others come.
    let ups = a.log().matches("relay is up").count();
    wait_until("another certificate", Duration::from_secs(u64::from(SECONDS) + 15), || {
        // The relay takes so many connections of one address, and no more.
        std::thread::sleep(Duration::from_secs(1));
        let (vouched, serial) = shown(&a, &root);
        assert!(vouched, "{}", internet.relay.output());
        (serial != first).then_some(())
    });
    assert!(is_by_tcp(&a));
    assert_eq!(a.log().matches("relay is up").count(), ups, "{}", a.log());
    let b = internet.machine("b", NatKind::UdpBlocked);
    let url = a.must(&["invite", "b"]);
    b.must(&["join", url.trim(), "--name", "b"]);
    b.host.must_reach(&a.overlay(), 10);

    // Started again, it needs no authority; nor does it forget whose key it has.
    ends(&authority);
    let (_, second) = shown(&a, &root);
    start(&mut internet);
    let (vouched, third) = shown(&a, &root);
    assert!(vouched && second == third, "{}", internet.relay.output());
    let log = internet.relay.output();
    assert!(!log.rsplit("stopping").next().unwrap().contains("a certificate was issued"), "{log}");
    let secret = std::fs::read(format!("{state}/acme/certificate")).unwrap();
    let secret = String::from_utf8_lossy(&secret);
    let body = secret.split("BEGIN PRIVATE KEY-----\\n").nth(1).unwrap()[..40].to_owned();
    assert!(!log.contains(&body));
}
