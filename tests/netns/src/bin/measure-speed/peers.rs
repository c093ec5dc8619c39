//! The peers, each in its fastest sensible configuration: no compression, direct paths, the largest MTU that fits into
//! packets of 1500 bytes (or, where it measured faster, the one that its users take), large socket buffers.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use shadowmesh_netns_tests::{Host, Process, wait_until};

use crate::contender::Overlay;
use crate::net::{End, Net};

/// A program by somebody else.
pub struct Peer {
    /// As it is listed.
    pub name: &'static str,
    /// What it needs; its daemon first.
    pub programs: &'static [&'static str],
    /// Asks the daemon for its version.
    pub version: &'static str,
    /// Its configuration in words.
    pub about: &'static str,
    /// Starts it on both hosts.
    pub start: fn(&Net, &[PathBuf]) -> Overlay,
}

const WIREGUARD: Peer = Peer {
    name: "wireguard-go",
    programs: &["wireguard-go", "wg"],
    version: "--version",
    about: "layer 3, ChaCha20-Poly1305, MTU 1440",
    start: wireguard,
};

const NEBULA: Peer = Peer {
    name: "nebula",
    programs: &["nebula", "nebula-cert"],
    version: "-version",
    about: "layer 3, AES-256-GCM, 2 routines, MTU 1440",
    start: nebula,
};

/// All that is known. `-bpo` and `-new` are newer builds, of Debian's backports and of its next release, under names of
/// their own so that they stand beside the others.
pub const PEERS: &[Peer] = &[
    WIREGUARD,
    Peer { name: "wireguard-go-bpo", programs: &["wireguard-go-bpo", "wg"], ..WIREGUARD },
    Peer { name: "wireguard-go-new", programs: &["wireguard-go-new", "wg"], ..WIREGUARD },
    Peer {
        name: "fastd",
        programs: &["fastd"],
        version: "--version",
        about: "layer 2, Salsa20/12 + UMAC, MTU 1426",
        start: fastd,
    },
    Peer {
        name: "tinc",
        programs: &["tincd"],
        version: "--version",
        about: "layer 2 (switch), AES-256-CBC + HMAC-SHA-256 cut to 32 bits, MTU 1400",
        start: tinc,
    },
    Peer {
        name: "n2n",
        programs: &["edge", "supernode"],
        version: "-h",
        about: "layer 2, Twofish-CBC without authentication, direct, MTU 1400",
        start: n2n,
    },
    Peer {
        name: "openvpn",
        programs: &["openvpn", "openssl"],
        version: "--version",
        about: "layer 2 (TAP), AES-256-GCM, no kernel offload, MTU 1432",
        start: openvpn,
    },
    NEBULA,
    Peer { name: "nebula-new", programs: &["nebula-new", "nebula-new-cert"], ..NEBULA },
];

/// Of a and of b in each peer's overlay.
const ADDRESSES: [&str; 2] = ["10.9.0.1", "10.9.0.2"];
/// The interface, where its name can be chosen.
const INTERFACE: &str = "vpn0";

fn overlay() -> Overlay {
    Overlay::to(ADDRESSES[1])
}

/// Which of the two it is (0 for a), for keys and addresses; and what messages call it.
fn role(end: &End) -> (usize, &'static str) {
    if end.host.name() == "a" { (0, "a") } else { (1, "b") }
}

fn spawn(end: &End, program: &Path, arguments: &[&str]) -> Process {
    // Go's WireGuard tells of each key that it makes otherwise.
    end.host.spawn("peer", program, arguments, &[("LOG_LEVEL", "error")])
}

/// Gives an interface that a daemon makes its address, and brings it up.
fn address(host: &Host, interface: &str, daemon: &Process, mtu: u32, address: &str) {
    wait_until("its interface", Duration::from_secs(10), || {
        assert!(daemon.is_running(), "it ended: {}", daemon.output());
        host.try_run("ip", &["link", "show", "dev", interface]).status.success().then_some(())
    });
    host.ip(&format!("link set {interface} mtu {mtu} up"));
    host.ip(&format!("address replace {address}/24 dev {interface}"));
}

/// Writes a file that only its owner reads, as some demand of keys.
fn write(path: &Path, text: &str) {
    let made = path.parent().map_or(Ok(()), fs::create_dir_all);
    made.and_then(|()| fs::write(path, text))
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o600)))
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

fn must(program: &Path, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|e| panic!("{}: {e}", program.display()));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} {arguments:?}: {said}", program.display());
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn wireguard(net: &Net, programs: &[PathBuf]) -> Overlay {
    let wg = &programs[1];
    let keys = [0, 1].map(|i| {
        let (private, file) = (must(wg, &["genkey"]), net.lab.directory().join(format!("key{i}")));
        write(&file, &private);
        let public = must(Path::new("sh"), &["-c", &format!("{} pubkey < {}", wg.display(), file.display())]);
        (private.trim().to_owned(), public.trim().to_owned())
    });
    let mut overlay = overlay();
    for end in net.ends() {
        let (i, role) = role(end);
        // Its control socket goes by this name, for all namespaces in one directory.
        let interface = format!("wg{}{role}", std::process::id());
        overlay.left.push(format!("/var/run/wireguard/{interface}.sock").into());
        let daemon = spawn(end, &programs[0], &["-f", &interface]);
        address(&end.host, &interface, &daemon, 1440, ADDRESSES[i]);
        let endpoint = if i == 0 { format!("Endpoint = {}:51820\n", end.other) } else { String::new() };
        let config = net.lab.directory().join(format!("wg-{role}.conf"));
        let (private, public) = (&keys[i].0, &keys[1 - i].1);
        write(
            &config,
            &format!(
                "[Interface]\nPrivateKey = {private}\nListenPort = 51820\n[Peer]\nPublicKey = {public}\n\
                 AllowedIPs = 10.9.0.0/24\n{endpoint}"
            ),
        );
        let arguments = ["setconf", &interface, &config.display().to_string()];
        wait_until("its control socket", Duration::from_secs(5), || {
            end.host.try_run(wg, &arguments).status.success().then_some(())
        });
        overlay.add(role, daemon);
    }
    overlay
}

fn fastd(net: &Net, programs: &[PathBuf]) -> Overlay {
    let keys = [0, 1].map(|_| {
        let said = must(&programs[0], &["--generate-key"]);
        let value =
            |key| said.lines().find_map(|l| l.strip_prefix(key)).unwrap_or_default().trim().to_owned();
        (value("Secret:"), value("Public:"))
    });
    let mut overlay = overlay();
    for end in net.ends() {
        let (i, role) = role(end);
        let remote = if i == 0 { format!("remote {}:10000; ", end.other) } else { String::new() };
        let (secret, public) = (&keys[i].0, &keys[1 - i].1);
        let config = net.lab.directory().join(format!("fastd-{role}.conf"));
        write(
            &config,
            &format!(
                "mode tap;\ninterface \"{INTERFACE}\";\nmtu 1426;\nmethod \"salsa2012+umac\";\nbind any:10000;\n\
                 secret \"{secret}\";\nlog level warn;\npeer \"other\" {{ key \"{public}\"; {remote}}}\n"
            ),
        );
        let daemon = spawn(end, &programs[0], &["-c", &config.display().to_string()]);
        address(&end.host, INTERFACE, &daemon, 1426, ADDRESSES[i]);
        overlay.add(role, daemon);
    }
    overlay
}

fn tinc(net: &Net, programs: &[PathBuf]) -> Overlay {
    let directory = |role: &str| net.lab.directory().join(format!("tinc-{role}"));
    for end in net.ends() {
        let (i, role) = role(end);
        let connect = if i == 0 { "ConnectTo = b\n" } else { "" };
        write(
            &directory(role).join("tinc.conf"),
            &format!(
                "Name = {role}\nMode = switch\nDeviceType = tap\nDevice = /dev/net/tun\nInterface = {INTERFACE}\n\
                 AddressFamily = ipv4\nUDPRcvBuf = 4194304\nUDPSndBuf = 4194304\n{connect}"
            ),
        );
        let host = format!(
            "Address = {}\nCipher = aes-256-cbc\nDigest = sha256\nMACLength = 4\nCompression = 0\n",
            end.address
        );
        write(&directory(role).join("hosts").join(role), &host);
        must(&programs[0], &["-c", &directory(role).display().to_string(), "-K", "2048"]);
    }
    let mut overlay = overlay();
    // What it sends meanwhile goes by TCP: until it has found the path's MTU.
    overlay.settle = Duration::from_secs(8);
    for end in net.ends() {
        let (i, role) = role(end);
        let other = if i == 0 { "b" } else { "a" };
        let key = directory(other).join("hosts").join(other);
        fs::copy(key, directory(role).join("hosts").join(other)).expect("the other's public key");
        let (config, pid) = (directory(role).display().to_string(), directory(role).join("pid"));
        let pid = format!("--pidfile={}", pid.display());
        let daemon = spawn(end, &programs[0], &["-c", &config, "-D", "-d1", &pid]);
        address(&end.host, INTERFACE, &daemon, 1400, ADDRESSES[i]);
        overlay.add(role, daemon);
    }
    overlay
}

fn n2n(net: &Net, programs: &[PathBuf]) -> Overlay {
    let mut overlay = overlay();
    // Until the edges have found each other's address, all goes through the supernode.
    overlay.settle = Duration::from_secs(6);
    overlay.add("supernode", net.r.spawn("peer", &programs[1], &["-l", "7654"], &[]));
    for end in net.ends() {
        let (i, role) = role(end);
        let supernode = format!("{}:7654", end.router);
        let arguments = [
            ["-d", INTERFACE, "-a", ADDRESSES[i], "-s", "255.255.255.0"],
            ["-c", "lab", "-k", "secret", "-l", &supernode],
            ["-M", "1400", "-u", "0", "-g", "0"],
        ];
        overlay.add(role, spawn(end, &programs[0], arguments.as_flattened()));
    }
    overlay
}

fn openvpn(net: &Net, programs: &[PathBuf]) -> Overlay {
    let file =
        |role: &str, kind: &str| net.lab.directory().join(format!("{role}.{kind}")).display().to_string();
    let fingerprints = ["a", "b"].map(|role| {
        let (key, certificate) = (file(role, "key"), file(role, "crt"));
        let curve = "ec_paramgen_curve:prime256v1";
        let make =
            ["req", "-x509", "-newkey", "ec", "-pkeyopt", curve, "-nodes", "-days", "30", "-subj", "/CN=lab"];
        must(&programs[1], &[&make[..], &["-keyout", &key, "-out", &certificate]].concat());
        let said = must(&programs[1], &["x509", "-in", &certificate, "-noout", "-fingerprint", "-sha256"]);
        said.split_once('=').map(|(_, f)| f.trim().to_owned()).unwrap_or_default()
    });
    let mut overlay = overlay();
    for end in net.ends() {
        let (i, role) = role(end);
        let (certificate, key) = (file(role, "crt"), file(role, "key"));
        let mut arguments =
            vec!["--dev", INTERFACE, "--dev-type", "tap", "--proto", "udp4", "--lport", "1194"];
        arguments.extend(["--local", end.address, "--cert", &certificate, "--key", &key, "--dh", "none"]);
        arguments.extend(["--peer-fingerprint", &fingerprints[1 - i], "--data-ciphers", "AES-256-GCM"]);
        arguments.extend(["--data-ciphers-fallback", "AES-256-GCM", "--allow-compression", "no"]);
        arguments.extend(["--tun-mtu", "1432", "--mssfix", "0", "--txqueuelen", "2000", "--fast-io"]);
        arguments.extend(["--sndbuf", "4194304", "--rcvbuf", "4194304", "--verb", "2"]);
        match i {
            0 => arguments.extend(["--remote", end.other, "1194", "--tls-client"]),
            _ => arguments.push("--tls-server"),
        }
        let daemon = spawn(end, &programs[0], &arguments);
        address(&end.host, INTERFACE, &daemon, 1432, ADDRESSES[i]);
        overlay.add(role, daemon);
    }
    overlay
}

fn nebula(net: &Net, programs: &[PathBuf]) -> Overlay {
    let file = |name: &str| net.lab.directory().join(name).display().to_string();
    let (ca, ca_key) = (file("ca.crt"), file("ca.key"));
    must(&programs[1], &["ca", "-name", "lab", "-out-crt", &ca, "-out-key", &ca_key]);
    let mut overlay = overlay();
    for end in net.ends() {
        let (i, role) = role(end);
        let (certificate, key) = (file(&format!("{role}.crt")), file(&format!("{role}.key")));
        let address = format!("{}/24", ADDRESSES[i]);
        let sign = ["sign", "-ca-crt", &ca, "-ca-key", &ca_key, "-name", role, "-ip", &address];
        must(&programs[1], &[&sign[..], &["-out-crt", &certificate, "-out-key", &key]].concat());
        // Host b tells where hosts are, itself among them.
        let (known, hosts) = match i {
            0 => (format!("\"{}\": [\"{}:4242\"]", ADDRESSES[1], end.other), format!("\"{}\"", ADDRESSES[1])),
            _ => (String::new(), String::new()),
        };
        let text = format!(
            "pki: {{ca: {ca}, cert: {certificate}, key: {key}}}\n\
             static_host_map: {{{known}}}\n\
             lighthouse: {{am_lighthouse: {lighthouse}, interval: 60, hosts: [{hosts}]}}\n\
             listen: {{host: 0.0.0.0, port: 4242, batch: 64, read_buffer: 4194304, write_buffer: 4194304}}\n\
             routines: 2\ncipher: aes\npunchy: {{punch: false}}\n\
             tun: {{disabled: false, dev: {INTERFACE}, mtu: 1440, tx_queue: 1000}}\n\
             logging: {{level: warning, format: text}}\n\
             firewall:\n  outbound: [{{port: any, proto: any, host: any}}]\n  \
             inbound: [{{port: any, proto: any, host: any}}]\n",
            lighthouse = i == 1,
        );
        let config = net.lab.directory().join(format!("{role}.yml"));
        write(&config, &text);
        overlay.add(role, spawn(end, &programs[0], &["-config", &config.display().to_string()]));
    }
    overlay
}
