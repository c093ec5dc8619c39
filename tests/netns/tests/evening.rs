//! The first minute, as a person does it: a relay, a network, an invite, a second machine; then what an admin does.
#![allow(clippy::unwrap_used, reason = "a test; clippy exempts only functions marked as such")]

use std::time::Duration;

use shadowmesh_netns_tests::{Evening, Lab, Machine, wait_until};

const SECONDS: fn(u64) -> Duration = Duration::from_secs;

#[test]
fn the_first_minute_and_what_an_admin_does() {
    let e = Evening::new("the first minute", &["laptop", "pi"]);
    let (laptop, pi) = (&e.machines[0], &e.machines[1]);

    // Nothing runs, and that is said with what to do.
    let (code, text) = laptop.say(&["status"]);
    assert_eq!((code, text.lines().next()), (3, Some("error: the daemon is not running.")));

    let text = laptop.must(&["network", "create", "home", "--relay", &e.urls[0], "--device", "laptop"]);
    for part in [
        "✓ daemon",
        "✓ identity",
        "✓ relay         203.0.113.2:443",
        "✓ network       home",
        "✓ up            sm-home  10.",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // The relay's URL was good once.
    let (code, text) = laptop.say(&["network", "create", "other", "--relay", &e.urls[0]]);
    assert!(code == 6 && text.contains("token was used already"), "{text}");
    assert_eq!(laptop.json(&["network", "list"])["networks"].as_array().unwrap().len(), 1);
    let (code, text) = laptop.say(&["network", "create", "home"]);
    assert!(code == 1 && text.contains("there is a network called \"home\" here already"), "{text}");

    // The relay link stands soon; then the invite, as a URL and as a picture.
    wait_until("the relay link", SECONDS(10), || {
        (laptop.json(&["status"])["networks"][0]["relays"][0]["up"] == true).then_some(())
    });
    let text = laptop.must(&["invite", "pi", "--qr", "--expires", "1h"]);
    let url = text.lines().next().unwrap().to_owned();
    assert!(url.starts_with("shadowmesh://join/") && text.contains("█"), "{text}");
    let list = laptop.json(&["invite", "list"]);
    assert_eq!((&list["invites"][0]["name"], &list["invites"][0]["state"]), (&"pi".into(), &"open".into()));

    let text = pi.must(&["join", &url]);
    for part in [
        "✓ invite        home, from laptop",
        "✓ certificate   verified",
        "✓ peer laptop   through relay",
        "✓ up            sm-home  10.",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let (a, b) = (laptop.address(), pi.address());
    laptop.host.must_reach(&b, 10);
    pi.host.must_reach(&a, 10);
    let text = pi.must(&["status"]);
    assert!(text.contains("1 of 1 peers reachable") && text.contains("relay  203.0.113.2:443"), "{text}");
    let text = laptop.must(&["ping", "pi", "-c", "1"]);
    assert!(text.contains("relay  203.0.113.2:443"), "{text}");

    // The invite was good once, and says by whom.
    assert_eq!(laptop.json(&["invite", "list"])["invites"][0]["state"], "used");
    pi.must(&["leave", "--yes"]);
    let (code, text) = pi.say(&["join", "shadowmesh://join/AQAA"]);
    assert!(code == 2 && text.contains("incomplete or mistyped"), "{text}");
    // The same machine may use it again: it is who used it.
    pi.must(&["join", &url]);
    laptop.host.must_reach(&pi.address(), 10);

    // Down and up again, in either order.
    pi.must(&["down"]);
    assert_eq!(pi.say(&["peers"]).0, 3);
    let text = pi.must(&["up"]);
    assert!(text.contains("started in the background") && text.contains("✓ up"), "{text}");
    laptop.host.must_reach(&pi.address(), 20);
    pi.must(&["down", "--network", "home"]);
    assert_eq!(pi.json(&["network", "list"])["networks"][0]["up"], false);
    pi.must(&["up"]);
    laptop.host.must_reach(&pi.address(), 20);

    // Revoked: cut off at once, and told so.
    let (code, text) = laptop.say(&["revoke", "pi"]);
    assert!(code == 2 && text.contains("--yes"), "{text}");
    laptop.must(&["revoke", "pi", "--reason", "lost", "--yes"]);
    wait_until("the end of the session", SECONDS(3), || {
        laptop.host.ping(&b, 1).rtt_ms.is_empty().then_some(())
    });
    // It hears that, and comes back only by a new invite, under another identity.
    let url = laptop.must(&["invite", "pi"]).trim().to_owned();
    wait_until("the news of it", SECONDS(10), || {
        let status = pi.json(&["status"]);
        status["networks"][0]["problems"].to_string().contains("was revoked in").then_some(())
    });
    let before = pi.json(&["status"])["networks"][0]["node"].clone();
    pi.must(&["leave", "--yes"]);
    pi.must(&["join", &url]);
    assert_ne!(pi.json(&["status"])["networks"][0]["node"], before);
    laptop.host.must_reach(&pi.address(), 10);
    assert_eq!(laptop.json(&["peers"])["peers"].as_array().unwrap().len(), 1);
    let (code, text) = laptop.say(&["revoke", "laptop", "--yes"]);
    assert!(code != 0, "{text}");
}

#[test]
fn a_relay_that_restarts_is_found_again() {
    let mut e = Evening::new("relay restart", &["laptop", "pi"]);
    let (laptop, pi) = (&e.machines[0], &e.machines[1]);
    laptop.must(&["network", "create", "home", "--relay", &e.urls[0]]);
    wait_until("the relay link", SECONDS(10), || {
        (laptop.json(&["status"])["networks"][0]["relays"][0]["up"] == true).then_some(())
    });
    let url = laptop.must(&["invite", "pi"]).trim().to_owned();
    pi.must(&["join", &url]);
    let address = pi.address();
    laptop.host.must_reach(&address, 10);
    e.relay.kill();
    assert!(laptop.host.ping(&address, 1).rtt_ms.is_empty());
    e.relay = e.start_relay();
    wait_until("an answer through the new relay", SECONDS(20), || {
        (!laptop.host.ping(&address, 1).rtt_ms.is_empty()).then_some(())
    });
    // And one that ends while it is away comes up without it, and says what is missing.
    e.relay.kill();
    pi.must(&["down"]);
    pi.must(&["up"]);
    let text = pi.must(&["status"]);
    assert!(text.contains("203.0.113.2:443  no answer"), "{text}");
}

#[test]
fn who_is_late_or_wrong_hears_why() {
    let e = Evening::new("late or wrong", &["laptop", "pi", "pi2"]);
    let (laptop, pi, pi2) = (&e.machines[0], &e.machines[1], &e.machines[2]);
    laptop.must(&[
        "network",
        "create",
        "home",
        "--relay",
        &e.urls[0],
        "--subnet",
        "10.99.0.0/16",
        "--device",
        "laptop",
    ]);
    wait_until("the relay link", SECONDS(10), || {
        (laptop.json(&["status"])["networks"][0]["relays"][0]["up"] == true).then_some(())
    });
    let url = laptop.must(&["invite", "pi"]).trim().to_owned();
    pi.must(&["join", &url]);
    assert!(pi.address().starts_with("10.99."));
    let (code, text) = pi2.say(&["join", &url]);
    assert!(code == 6 && text.contains("was used by `pi` on ") && text.contains(" UTC."), "{text}");
    // Nothing was left behind by that.
    assert_eq!(pi2.json(&["network", "list"])["networks"].as_array().unwrap().len(), 0);

    // Cancelled.
    let url = laptop.must(&["invite", "pi2"]).trim().to_owned();
    let list = laptop.json(&["invite", "list"]);
    let open = list["invites"].as_array().unwrap().iter().find(|i| i["state"] == "open").unwrap();
    laptop.must(&["invite", "cancel", open["id"].as_str().unwrap()]);
    let (code, text) = pi2.say(&["join", &url]);
    assert!(code == 5 || code == 6, "{text}");

    // A member is no admin.
    let (code, text) = pi.say(&["invite"]);
    assert!(code == 6 && text.contains("only an admin"), "{text}");

    // Three machines, and the admin away: the others still reach each other.
    let url = laptop.must(&["invite", "pi2", "--reusable"]).trim().to_owned();
    pi2.must(&["join", &url, "--name", "second-pi"]);
    pi.host.must_reach(&pi2.address(), 20);
    laptop.must(&["down"]);
    pi.host.must_reach(&pi2.address(), 5);
    let (code, text) = pi.say(&["ping", "laptop", "-c", "1"]);
    assert!(code == 5 && text.contains("no answer"), "{text}");
}

#[test]
fn commands_that_need_no_daemon() {
    let mut lab = Lab::new("no daemon");
    let machine = Machine { host: lab.host("a"), directory: lab.directory().join("a"), environment: vec![] };
    assert!(machine.must(&["version"]).starts_with("shadowmesh "));
    assert_eq!(machine.json(&["version"])["schema"], "shadowmesh/version/1");
    assert!(machine.must(&["completion", "bash"]).contains("_shadowmesh"));
    assert!(machine.must(&["man"]).contains(".TH"));
    assert!(machine.must(&["config", "show"]).contains("rekey: 2m  # default"));
    assert_eq!(machine.json(&["config", "show"])["crypto"]["rekey"], 120.0);
    std::fs::create_dir_all(&machine.directory).unwrap();
    let file = machine.directory.join("config.yaml");
    std::fs::write(&file, "networks:\n  home:\n    mtu: 20000\n").unwrap();
    for arguments in [&["config", "check"][..], &["daemon"], &["up"]] {
        let (code, text) = machine.say(arguments);
        let said = format!(
            "error: {}, line 3: `networks.home.mtu` is 20000; a whole number from 1280 to 9216 is allowed.\n",
            file.display()
        );
        assert_eq!((code, text), (7, said), "{arguments:?}");
    }
    std::fs::remove_file(&file).unwrap();
    assert_eq!(machine.say(&["config", "check"]).0, 7);
    for arguments in [&["nonsense"][..], &["join"], &["ping", "x", "-c", "y"]] {
        assert_eq!(machine.say(arguments).0, 2, "{arguments:?}");
    }
    // As root, without the user that it would become: refused, with what makes it.
    if nix::unistd::User::from_name("shadowmesh").unwrap().is_none() {
        let mut command = machine.host.command(Lab::binary("shadowmesh"));
        let output = command.arg("daemon").env("SHADOWMESH_DIR", &machine.directory).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(4) && text.contains("scripts/install"), "{text}");
    }
}
