//! What needs a process of its own: dropping privileges, being killed at any moment, locking out others.
//!
//! There is no test harness, because it would start threads: the program runs its tests in turn, each in a
//! child that is this same program with `SM_CHILD` set.
#![allow(clippy::unwrap_used, reason = "a test; clippy exempts only functions marked as such")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use shadowmesh_host::privilege::{DropOptions, PrivilegeError, drop_to, has_cap_net_admin};
use shadowmesh_host::store::{Dir, Origin, StoreError, View};
use shadowmesh_host::tap::{Tap, TapOptions};

fn main() {
    if let Ok(role) = std::env::var("SM_CHILD") {
        let argument = std::env::var_os("SM_ARGUMENT").unwrap_or_default();
        return match role.as_str() {
            "drop_keep" => child_drop(true),
            "drop_all" => child_drop(false),
            "no_user" => child_no_user(),
            "not_root" => child_not_root(),
            "writer" => child_writer(Path::new(&argument)),
            "locker" => child_locker(Path::new(&argument)),
            other => panic!("no such child: {other}"),
        };
    }
    let tests: [(&str, fn()); 6] = [
        ("dropping_keeps_net_admin_and_nothing_else", || run_child("drop_keep")),
        ("dropping_can_keep_nothing", || run_child("drop_all")),
        ("a_missing_user_is_said", || run_child("no_user")),
        ("only_root_can_drop", || run_child("not_root")),
        ("killed_at_any_moment_leaves_a_complete_version", killed_writers),
        ("a_second_process_is_locked_out_until_the_first_is_gone", locked_out),
    ];
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let filter: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let chosen: Vec<_> = tests
        .into_iter()
        .filter(|(name, _)| filter.is_empty() || filter.iter().any(|f| name.contains(f.as_str())))
        .collect();
    if arguments.iter().any(|a| a == "--list") {
        return chosen.iter().for_each(|(name, _)| println!("{name}: test"));
    }
    // The words of the ordinary harness, for those who count them. A failure is a panic, and ends it here.
    let clock = shadowmesh_host::clock::Clock::new();
    println!("\nrunning {} tests", chosen.len());
    for (name, test) in &chosen {
        test();
        println!("test {name} ... ok");
    }
    let (passed, out, took) = (chosen.len(), tests.len() - chosen.len(), clock.now().as_secs_f32());
    println!(
        "\ntest result: ok. {passed} passed; 0 failed; 0 ignored; 0 measured; {out} filtered out; finished in {took:.2}s\n"
    );
}

fn need_root() {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root: sudo -E cargo test -p shadowmesh-host");
}

fn spawn(role: &str, argument: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .env("SM_CHILD", role)
        .env("SM_ARGUMENT", argument)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn run_child(role: &str) {
    need_root();
    let status = spawn(role, Path::new("")).wait_with_output().unwrap().status;
    assert!(status.success(), "{role}: {status}");
}

fn status_field(name: &str) -> String {
    let text = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')).unwrap();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn child_drop(keep: bool) {
    // Its own network, so that the device made here is nobody's concern.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    let options = TapOptions { mtu: 1500, mac: [2, 0, 0, 0, 0, 1], vnet: false, queues: 1, txqueuelen: 64 };
    let tap = Tap::open("sm-drop", options).unwrap();
    let ids = drop_to(DropOptions { user: "nobody", keep_net_admin: keep, no_core_dumps: true }).unwrap();
    let id = ids.uid.to_string();
    assert_eq!(status_field("Uid"), [id.as_str(); 4].join(" "));
    assert_eq!(status_field("Gid"), [ids.gid.to_string().as_str(); 4].join(" "));
    assert_eq!(status_field("Groups"), ids.gid.to_string());
    // CAP_NET_ADMIN is number 12.
    let kept = if keep { "0000000000001000" } else { "0000000000000000" };
    let none = "0000000000000000";
    assert_eq!(status_field("CapPrm"), kept);
    assert_eq!(status_field("CapEff"), kept);
    for set in ["CapInh", "CapBnd", "CapAmb"] {
        assert_eq!(status_field(set), none, "{set}");
    }
    assert_eq!(status_field("NoNewPrivs"), "1");
    assert_eq!(has_cap_net_admin(), keep);
    assert!(!nix::sys::prctl::get_dumpable().unwrap());
    assert!(std::fs::read("/etc/shadow").is_err());
    // A thread started now has no more.
    let of_thread = std::thread::spawn(|| (status_field("CapPrm"), status_field("Uid"))).join().unwrap();
    assert_eq!(of_thread, (kept.to_owned(), [id.as_str(); 4].join(" ")));
    // Nor has a program that is executed, set-uid or not: with nothing inheritable or ambient it has none.
    let shown = Command::new("/bin/grep").args(["CapEff", "/proc/self/status"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&shown.stdout).trim(), format!("CapEff:\t{none}"));

    // The device that was opened before goes on, and netlink works exactly if the capability was kept.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let netlink = shadowmesh_host::netlink::Netlink::new().unwrap();
        let up = netlink.set_up("sm-drop").await;
        assert_eq!(up.is_ok(), keep, "{up:?}");
        let conf = shadowmesh_host::netlink::disable_ipv6_autoconf("sm-drop");
        assert_eq!(conf.is_ok(), keep, "{conf:?}");
    });
    let sent = tap.send(&[std::io::IoSlice::new(&[0xff; 60])]);
    assert_eq!(sent.is_ok(), keep, "{sent:?}");
}

fn child_no_user() {
    let result = drop_to(DropOptions { user: "no-such-user-sm", ..DropOptions::default() });
    assert!(matches!(&result, Err(PrivilegeError::NoUser(u)) if u == "no-such-user-sm"), "{result:?}");
    assert!(nix::unistd::geteuid().is_root() && has_cap_net_admin());
}

fn child_not_root() {
    drop_to(DropOptions { user: "nobody", ..DropOptions::default() }).unwrap();
    let again = drop_to(DropOptions { user: "nobody", ..DropOptions::default() });
    assert!(matches!(again, Err(PrivilegeError::NotRoot)), "{again:?}");
}

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("sm-proc-{}-{name}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _left = std::fs::remove_dir_all(&self.0);
    }
}

/// A version: its number, and bytes that follow from it, of a size that changes.
fn version(n: u32) -> Vec<u8> {
    let size = 1 + (n as usize * 7919) % 60_000;
    let mut bytes = n.to_be_bytes().to_vec();
    bytes.extend((0..size).map(|i| (n as usize + i * 31) as u8));
    bytes
}

fn number(bytes: &[u8]) -> u32 {
    let n = u32::from_be_bytes(bytes[..4].try_into().unwrap());
    assert_eq!(bytes, version(n), "not a complete version");
    n
}

fn child_writer(path: &Path) {
    let dir = Dir::open(path).unwrap();
    let mut n = dir.read("counter").unwrap().map_or(0, |s| number(&s.bytes));
    loop {
        n += 1;
        dir.write("counter", &version(n)).unwrap();
        // Written means durable: what is said here must be found afterwards.
        println!("{n}");
    }
}

fn killed_writers() {
    let scratch = Scratch::new("kill");
    let mut seed = u64::from(std::process::id());
    let mut last = 0;
    for round in 0..50 {
        let child = spawn("writer", &scratch.0);
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        std::thread::sleep(Duration::from_micros(5_000 + (seed >> 33) % 60_000));
        let mut child = child;
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        // The last line may be cut.
        let said =
            said.rsplit_once('\n').and_then(|(all, _)| all.lines().last()?.parse().ok()).unwrap_or(last);
        let found = View::new(&scratch.0).read("counter").unwrap();
        let n = match &found {
            Some(stored) => {
                assert_eq!(stored.origin, Origin::Current, "round {round}");
                number(&stored.bytes)
            }
            None => 0,
        };
        assert!(n == said || n == said + 1, "round {round}: {said} was durable, {n} was found");
        last = n;
    }
    assert!(last > 50, "only {last} versions were written");
    let dir = Dir::open(&scratch.0).unwrap();
    let left = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 3, "the file, its backup and the lock");
}

fn child_locker(path: &Path) {
    let _dir = Dir::open(path).unwrap();
    println!("locked");
    std::thread::sleep(Duration::from_secs(60));
}

fn locked_out() {
    let scratch = Scratch::new("lock");
    let mut child = spawn("locker", &scratch.0);
    let mut line = String::new();
    let stdout = child.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
    assert_eq!(line, "locked\n");
    match Dir::open(&scratch.0) {
        Err(StoreError::Locked { pid, .. }) => assert_eq!(pid, Some(child.id())),
        other => panic!("{other:?}"),
    }
    child.kill().unwrap();
    child.wait().unwrap();
    Dir::open(&scratch.0).unwrap();
}
