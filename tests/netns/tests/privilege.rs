//! The daemon as root becomes the user `shadowmesh`; who may talk to it then.
#![allow(clippy::unwrap_used, reason = "a test; clippy exempts only functions marked as such")]

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use shadowmesh_identity::Bridge;
use shadowmesh_netns_tests::{Host, Lab, Process, make_network};

/// The user and its group, as this test has them.
const USER: u32 = 47_312;
/// Who is in the group, and who is nobody.
const READER: u32 = 47_400;
const STRANGER: u32 = 47_500;
/// The operator.
const OPERATOR: u32 = 47_600;

/// A world in which the user exists: the files that name users, put in place in a mount namespace of its own.
struct World {
    host: Host,
    directory: PathBuf,
}

impl World {
    /// `tun` is the mode of /dev/net/tun: 666 on most machines, 600 in some containers.
    fn new(host: Host, lab: &Path, tun: &str) -> World {
        let node = lab.join("tun");
        host.run("mknod", &["-m", tun, node.to_str().unwrap(), "c", "10", "200"]);
        let user = format!(
            "shadowmesh:x:{USER}:{USER}::/:/usr/sbin/nologin\nreader:x:{READER}:{READER}::/:/bin/sh\n"
        );
        let group = format!("shadowmesh:x:{USER}:reader\nreader:x:{READER}:\n");
        for (file, lines) in [("passwd", user), ("group", group)] {
            let own = std::fs::read_to_string(format!("/etc/{file}")).unwrap();
            let own: String =
                own.lines().filter(|l| !l.starts_with("shadowmesh:")).map(|l| format!("{l}\n")).collect();
            std::fs::write(lab.join(file), own + &lines).unwrap();
        }
        World { host, directory: lab.to_owned() }
    }

    /// A shell's line in that world.
    fn line(&self, script: &str) -> Vec<String> {
        let mounts = [("passwd", "/etc"), ("group", "/etc"), ("tun", "/dev/net")]
            .map(|(f, to)| format!("mount --bind {}/{f} {to}/{f} && ", self.directory.display()))
            .concat();
        ["-m", "sh", "-c", &format!("{mounts}exec {script}")].map(str::to_owned).to_vec()
    }

    /// Runs it as a user; exit code and all that it said.
    fn run_as(&self, uid: u32, groups: &str, script: &str) -> (i32, String) {
        let script = format!("setpriv --reuid {uid} --regid {uid} {groups} {script}");
        let line = self.line(&script);
        let output = self.host.command("unshare").args(&line).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    }

    fn daemon(&self, directory: &Path, operator: u32) -> Process {
        let script = format!(
            "env SHADOWMESH_DIR={} SUDO_UID={operator} {} daemon",
            directory.display(),
            Lab::binary("shadowmesh").display()
        );
        let line = self.line(&script);
        let arguments: Vec<&str> = line.iter().map(String::as_str).collect();
        let daemon = self.host.spawn("daemon", "unshare", &arguments, &[]);
        daemon.wait_for("ready", Duration::from_secs(10));
        daemon
    }
}

#[test]
fn root_is_given_up_and_others_may_look_or_not_at_all() {
    let mut lab = Lab::new("privilege");
    let host = lab.host("a");
    let world = World::new(host, lab.directory(), "666");
    let member = make_network(lab.directory(), &["one"], &Bridge::default()).remove(0);
    for directory in [lab.directory(), &member.directory] {
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let daemon = world.daemon(&member.directory, OPERATOR);

    // Who it is, what it kept, what is whose.
    let pid = world.host.run("cat", &[member.directory.join("state/lock").to_str().unwrap()]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.trim())).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|l| l.starts_with(name)).unwrap();
        line.split_whitespace().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(field("Uid:"), [&USER.to_string()[..]; 4]);
    assert_eq!(field("Gid:"), [&USER.to_string()[..]; 4]);
    // CAP_NET_ADMIN is number 12.
    assert_eq!(
        (field("CapEff:"), field("CapPrm:")),
        (vec!["0000000000001000".into()], vec!["0000000000001000".into()])
    );
    assert_eq!(field("NoNewPrivs:"), ["1"]);
    let threads = std::fs::read_dir(format!("/proc/{}/task", pid.trim())).unwrap();
    for thread in threads {
        let status = std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        assert!(status.contains("CapEff:\t0000000000001000"), "{status}");
    }
    for file in ["state", "state/seed", "state/networks/home/facts"] {
        let meta = std::fs::metadata(member.directory.join(file)).unwrap();
        assert_eq!((meta.uid(), meta.mode() & 0o077), (USER, 0), "{file}");
    }
    let socket = std::fs::metadata(member.directory.join("run/control.sock")).unwrap();
    assert_eq!((socket.mode() & 0o777, socket.uid(), socket.gid()), (0o660, OPERATOR, USER));

    // Who may look, who may change, who may neither.
    let program = Lab::binary("shadowmesh");
    let command = |what: &str| {
        format!("env SHADOWMESH_DIR={} {} {what}", member.directory.display(), program.display())
    };
    let (code, text) = world.run_as(READER, "--init-groups", &command("status"));
    assert!(code == 0 && text.contains("sm-home"), "{text}");
    let (code, text) = world.run_as(READER, "--init-groups", &command("down"));
    assert!(code == 4 && text.contains("this user may not do that"), "{text}");
    let (code, text) = world.run_as(STRANGER, "--clear-groups", &command("status"));
    assert!(code == 4 && text.contains("may not talk to the daemon"), "{text}");
    // Not a browser's request, not through a proxy's name.
    let curl = |header: &str| {
        let socket = member.directory.join("run/control.sock");
        world.host.run(
            "curl",
            &["-s", "--unix-socket", socket.to_str().unwrap(), "-H", header, "http://shadowmesh/v1/status"],
        )
    };
    assert!(curl("Accept: */*").contains("shadowmesh/status/1"));
    for header in ["Host: localhost", "Host: evil.example", "Origin: https://evil.example"] {
        let said = curl(header);
        assert!(said.contains("browsers and proxies are not answered"), "{header}: {said}");
    }

    // A network that is made now gets its device although root is gone. The operator may do that.
    let (code, text) = world.run_as(OPERATOR, "--clear-groups", &command("network create second"));
    assert!(code == 0 && text.contains("sm-second"), "{text}\n{}", daemon.output());
    assert_eq!(world.host.addresses("sm-second").len(), 2);
    let (code, text) = world.run_as(OPERATOR, "--clear-groups", &command("leave --network second --yes"));
    assert!(code == 0, "{text}");
    let (code, text) = world.run_as(OPERATOR, "--clear-groups", &command("down"));
    assert!(code == 0, "{text}");
    assert!(daemon.wait(Duration::from_secs(5)).success());
    assert!(!member.directory.join("run/control.sock").exists());
}

#[test]
fn where_only_root_gets_devices_a_new_network_starts_the_daemon_anew() {
    let mut lab = Lab::new("devices for root alone");
    let host = lab.host("a");
    let world = World::new(host, lab.directory(), "600");
    std::fs::set_permissions(lab.directory(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let directory = lab.directory().join("one");
    let command = |what: &str| {
        format!("env SHADOWMESH_DIR={} {} {what}", directory.display(), Lab::binary("shadowmesh").display())
    };
    let (code, text) = world.run_as(0, "--clear-groups", &command("network create first"));
    assert!(code == 0 && text.matches("started in the background").count() == 2, "{text}");
    assert!(text.contains("✓ up            sm-first"), "{text}");
    assert_eq!(world.host.addresses("sm-first").len(), 2);
    let log = std::fs::metadata(directory.join("state/daemon.log")).unwrap();
    assert_eq!(log.uid(), USER);
    let (code, text) = world.run_as(0, "--clear-groups", &command("down"));
    assert!(code == 0, "{text}");
    assert!(world.host.addresses("sm-first").is_empty());
}
