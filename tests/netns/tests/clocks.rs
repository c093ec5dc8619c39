//! Clocks that are wrong: one that is behind joins and hears it; one that is ahead of everything hears that it is the clock.
#![allow(clippy::unwrap_used, reason = "a test; clippy exempts only functions marked as such")]

use std::time::Duration;

use shadowmesh_netns_tests::{Evening, Machine, wait_until};

const SECONDS: fn(u64) -> Duration = Duration::from_secs;
/// Seconds: thirty-five days and a half.
const BEHIND: &str = "-3067200";
/// Five hundred days.
const AHEAD: &str = "+43200000";

/// What runs on the machine from now on sees another time of day. Time that passes, passes as ever.
fn shift(machine: &mut Machine, by: &'static str) {
    machine.environment = vec![
        ("LD_PRELOAD", "/usr/$LIB/faketime/libfaketimeMT.so.1"),
        ("FAKETIME", by),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ];
    let mut date = machine.host.command("date");
    date.arg("+%s").envs(machine.environment.iter().copied());
    let said = String::from_utf8(date.output().unwrap().stdout).unwrap();
    let now = shadowmesh_host::clock::Clock::new().unix() as i64;
    let off = said.trim().parse::<i64>().unwrap() - now;
    let wanted = by.parse::<i64>().unwrap();
    assert!((off - wanted).abs() < 60, "libfaketime does not work here ({off} s); run: sudo make deps");
}

/// Its clock is right again, for what is started from now on.
fn set_right(machine: &mut Machine) {
    machine.must(&["down"]);
    machine.environment.clear();
}

/// Neither a seed nor a network is on the disk.
fn assert_nothing_written(machine: &Machine) {
    let left = |directory: &str| std::fs::read_dir(machine.directory.join(directory)).unwrap().count();
    assert_eq!((left("state/networks"), left("state/new")), (0, 0));
    assert!(!machine.directory.join("state/seed").exists(), "a seed of nothing");
}

/// A program that is told that its clock is wrong, and what to do.
fn assert_clock_is_blamed(machine: &Machine, arguments: &[&str]) {
    let (code, text) = machine.say(arguments);
    assert_eq!(code, 1, "{text}");
    assert!(
        text.contains("this machine's clock is ahead: it stands on ") && text.contains(" ended on "),
        "{text}"
    );
    assert!(text.contains("Set the clock, then do this again:  timedatectl set-ntp true"), "{text}");
    assert_nothing_written(machine);
}

#[test]
fn weeks_behind() {
    let mut e = Evening::new("a clock that is behind", &["laptop", "pi"]);
    let [laptop, pi] = &mut e.machines[..] else { panic!("two machines") };
    shift(pi, BEHIND);
    laptop.must(&["network", "create", "home", "--relay", &e.urls[0], "--device", "laptop"]);
    wait_until("the relay link", SECONDS(10), || {
        (laptop.json(&["status"])["networks"][0]["relays"][0]["up"] == true).then_some(())
    });
    let url = laptop.must(&["invite", "pi"]).trim().to_owned();
    let said = pi.must(&["join", &url, "--name", "pi"]);
    assert!(said.contains(
        "warning: this machine's clock is 35 days behind laptop's; set it:  timedatectl set-ntp true"
    ));
    let works = |pi: &Machine| {
        pi.host.must_reach(&laptop.address(), 20);
        laptop.host.must_reach(&pi.address(), 20);
    };
    works(pi);
    // It goes on saying so, to whoever looks; those whose clocks are right hear nothing.
    let hears = |machine: &Machine, what: &str| machine.say(&["status"]).1.contains(what);
    assert!(hears(
        pi,
        "clock is 35 days behind that of the relay 203.0.113.2:443. Set the one that is wrong"
    ));
    assert!(!hears(laptop, "clock"));
    // It comes back by its own opening and by the other's, with the same clock and with one that is right.
    pi.must(&["down"]);
    pi.must(&["up"]);
    works(pi);
    set_right(pi);
    pi.must(&["up"]);
    works(pi);
    assert!(!hears(pi, "clock"));
}

#[test]
fn ahead_of_everything() {
    let mut e = Evening::new("a clock that is ahead", &["laptop", "pi"]);
    let [laptop, pi] = &mut e.machines[..] else { panic!("two machines") };
    shift(laptop, AHEAD);
    shift(pi, AHEAD);

    let create = ["network", "create", "home", "--relay", &e.urls[0], "--device", "laptop"];
    assert_clock_is_blamed(laptop, &create);
    set_right(laptop);
    // The relay's URL, good once, is still good; and so is the invite.
    laptop.must(&create);
    wait_until("the relay link", SECONDS(10), || {
        (laptop.json(&["status"])["networks"][0]["relays"][0]["up"] == true).then_some(())
    });
    let url = laptop.must(&["invite", "pi"]).trim().to_owned();
    let join = ["join", &url, "--name", "pi"];
    assert_clock_is_blamed(pi, &join);
    set_right(pi);
    pi.must(&join);
    pi.host.must_reach(&laptop.address(), 20);

    // A member whose clock leaps ahead hears it, too.
    pi.must(&["down"]);
    shift(pi, AHEAD);
    pi.must(&["up"]);
    let (_, text) = pi.say(&["status"]);
    assert!(
        text.contains("this machine's clock says ") && text.contains("Set the clock (timedatectl"),
        "{text}"
    );
    set_right(pi);
    pi.must(&["up"]);
    pi.host.must_reach(&laptop.address(), 20);
    laptop.host.must_reach(&pi.address(), 20);
}
