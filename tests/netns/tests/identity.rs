//! The 24 words bring a lost machine back as who it was; a network is deleted here and lives on elsewhere.
#![allow(clippy::unwrap_used, reason = "a test; clippy exempts only functions marked as such")]

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use shadowmesh_netns_tests::{Evening, Lab, Machine, wait_until};

const SECONDS: fn(u64) -> Duration = Duration::from_secs;

/// `identity restore` with these words at its input: exit code and all that it said.
fn restore(machine: &Machine, words: &str) -> (i32, String) {
    let mut command = machine.host.command(Lab::binary("shadowmesh"));
    command.args(["identity", "restore"]).env("SHADOWMESH_DIR", &machine.directory);
    command.env("SHADOWMESH_ALLOW_ROOT", "1");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(words.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (output.status.code().unwrap_or(-1), text)
}

fn node(machine: &Machine) -> String {
    machine.json(&["status"])["networks"][0]["node"].as_str().unwrap().to_owned()
}

fn has_device(machine: &Machine) -> bool {
    machine.host.ip("-o link").contains("sm-home")
}

#[test]
fn words_bring_a_lost_machine_back() {
    let e = Evening::new("words", &["laptop", "pi", "new"]);
    let [laptop, pi, new] = &e.machines[..] else { panic!("three machines") };
    // Without an identity there are no words, and none is made by asking.
    laptop.must(&["up"]);
    let (code, text) = laptop.say(&["identity", "backup"]);
    assert!(code == 1 && text.contains("there is no identity yet"), "{text}");

    laptop.must(&["network", "create", "home", "--relay", &e.urls[0], "--device", "laptop"]);
    wait_until("the relay link", SECONDS(10), || {
        (laptop.json(&["status"])["networks"][0]["relays"][0]["up"] == true).then_some(())
    });
    let url = laptop.must(&["invite", "pi"]).trim().to_owned();
    pi.must(&["join", &url, "--name", "pi"]);
    laptop.host.must_reach(&pi.address(), 20);
    let (was, address) = (node(pi), pi.address());

    // As people get them, numbered; the same each time, and in no log.
    let text = pi.must(&["identity", "backup"]);
    let words: Vec<&str> = text
        .lines()
        .take_while(|l| !l.is_empty())
        .flat_map(str::split_whitespace)
        .filter(|w| w.parse::<u32>().is_err())
        .collect();
    assert_eq!(words.len(), 24, "{text}");
    assert_eq!(pi.json(&["identity", "backup"])["words"], words.join(" "));
    assert!(!pi.log().contains(&words[..3].join(" ")));
    assert!(laptop.json(&["identity", "backup"])["words"] != words.join(" "));

    // Lost for good.
    pi.crash();
    std::fs::remove_dir_all(&pi.directory).unwrap();

    // Words that are no words, too few, or in another order: said, and nothing is stored.
    for bad in ["", "what ever", &words[..23].join(" "), &[&words[1..], &words[..1]].concat().join(" ")] {
        let (code, text) = restore(new, bad);
        assert!(code == 2 && text.contains("error: "), "{bad}: {code} {text}");
    }
    assert!(!new.directory.join("state/seed").exists());
    // On another machine, numbers and all.
    let (code, said) = restore(new, text.split("\n\n").next().unwrap());
    assert!(code == 0 && said.contains("restored"), "{said}");
    let url = laptop.must(&["invite", "pi"]).trim().to_owned();
    new.must(&["join", &url, "--name", "pi"]);
    assert_eq!((node(new), new.address()), (was, address));
    laptop.host.must_reach(&new.address(), 20);
    assert_eq!(laptop.json(&["peers"])["peers"].as_array().unwrap().len(), 1);
    // What is there is never overwritten.
    let (code, text) = restore(new, &words.join(" "));
    assert!(code == 1 && text.contains("has a master seed already"), "{text}");
}

#[test]
fn a_deleted_network_lives_on_elsewhere() {
    let e = Evening::new("delete", &["laptop", "pi", "nas"]);
    e.network("home");
    let [laptop, pi, nas] = &e.machines[..] else { panic!("three machines") };
    pi.host.must_reach(&nas.address(), 20);
    let before = node(laptop);

    // Not by accident, and not what is not there.
    let (code, text) = laptop.say(&["network", "delete"]);
    assert!(code == 2 && text.contains("--yes"), "{text}");
    let (code, text) = laptop.say(&["network", "delete", "--network", "other", "--yes"]);
    assert!(code == 2 && text.contains("there is no network \"other\" here"), "{text}");
    assert!(has_device(laptop));

    laptop.must(&["network", "delete", "--yes"]);
    assert!(!has_device(laptop));
    assert_eq!(laptop.json(&["network", "list"])["networks"].as_array().unwrap().len(), 0);
    // No secret of it is left on the disk but the seed.
    let left = |directory: &str| std::fs::read_dir(laptop.directory.join(directory)).unwrap().count();
    assert_eq!((left("state/networks"), left("state/new")), (0, 0));
    assert!(laptop.directory.join("state/seed").exists());
    // It stays away after a restart; the others go on without it.
    laptop.must(&["down"]);
    laptop.must(&["up"]);
    assert!(!has_device(laptop));
    pi.host.must_reach(&nas.address(), 5);

    // Another of that name is another network.
    laptop.must(&["network", "create", "home", "--relay", &e.urls[1], "--device", "laptop"]);
    assert_ne!(node(laptop), before);
    assert!(laptop.host.ping(&pi.address(), 1).rtt_ms.is_empty());
}
