//! The units under a real systemd, in a container over a copy of this system that only this test sees: the sandbox lets
//! both programs do all that they must, and leaves them no more than they need.
#![allow(clippy::unwrap_used, reason = "a test; clippy exempts only functions marked as such")]

use std::path::Path;
use std::process::Command;

use shadowmesh_netns_tests::Lab;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// What the container runs; the last line it says is that it came to the end.
const STEPS: &str = r#"
set -eux
trap 'set +e; systemctl --no-pager status shadowmesh shadowmesh-relay; journalctl --no-pager -n 60; systemctl poweroff' EXIT
# Waits until a command says something that matches.
until_said() {
    for _ in $(seq 100); do
        if "${@:2}" 2>/dev/null | grep -q "$1"; then return; fi
        sleep 0.1
    done
    echo "waited in vain for $1: ${*:2}"; exit 1
}
# A line of a service's /proc/PID/status.
of() { grep "^$2:" /proc/$(systemctl show -p MainPID --value $1)/status | tr -d ' \t' | cut -d: -f2; }
ip link set lo up
cd /sm
scripts/install --from /sm/bin
shadowmesh-relay init --public 127.0.0.1 | tee /run/init
systemctl enable --now shadowmesh-relay
shadowmesh network create home --device box --relay "$(grep -o 'smr://[^ ]*' /run/init)"
systemctl is-active shadowmesh
up() { until_said 127.0.0.1:443.*udp shadowmesh status; }
up
node=$(shadowmesh status --json | grep -m1 '"node"')

# No more than is needed: another user, NET_ADMIN and nothing, a filter of system calls.
[ $(of shadowmesh CapEff) = 0000000000001000 ]
[ $(of shadowmesh-relay CapEff) = 0000000000000000 ]
for s in shadowmesh shadowmesh-relay; do
    [ $(of $s Seccomp) = 2 ]
    [ $(stat -c %U /proc/$(systemctl show -p MainPID --value $s)) = shadowmesh ]
done

systemctl reload shadowmesh
systemctl reload shadowmesh-relay
up
systemctl kill -s KILL shadowmesh
until_said '"node"' shadowmesh status --json
up
shadowmesh status --json | grep -qF "$node"
systemctl restart shadowmesh-relay
up
shadowmesh down
until_said inactive systemctl is-active shadowmesh
if ip link show sm-home; then exit 1; fi
shadowmesh up
systemctl is-active shadowmesh
up
systemctl stop shadowmesh shadowmesh-relay
for s in shadowmesh shadowmesh-relay; do [ "$(systemctl is-failed $s)" = inactive ]; done
echo came to the end
"#;

const UNIT: &str = "[Unit]\nAfter=multi-user.target\n[Service]\nType=oneshot\nExecStart=/bin/bash /sm/steps\n\
                    StandardOutput=file:/sm/said\nStandardError=file:/sm/said\nTimeoutStartSec=120\n";

#[test]
fn the_units_work_under_systemd() {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root; run: sudo -E make test");
    assert!(Path::new("/usr/bin/systemd-nspawn").exists(), "systemd-nspawn is missing; run: sudo make deps");
    let [client, relay] = ["shadowmesh", "shadowmesh-relay"].map(Lab::binary);
    let outside = format!(
        r#"
        set -eu
        mount --make-rprivate /
        mount -t tmpfs tmpfs /mnt
        mkdir /mnt/upper /mnt/work /mnt/root
        mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
        root=/mnt/root
        rm -rf $root/etc/shadowmesh $root/var/lib/shadowmesh* $root/usr/local/bin/shadowmesh*
        mkdir -p $root/sm/bin $root/etc/systemd/system/multi-user.target.wants
        cp {} {} $root/sm/bin
        cp -r scripts systemd README.md LICENSE-* $root/sm
        printf '%s' "$STEPS" > $root/sm/steps
        printf '%s' "$UNIT" > $root/etc/systemd/system/sm-steps.service
        ln -s ../sm-steps.service $root/etc/systemd/system/multi-user.target.wants/
        timeout 150 systemd-nspawn -q -D $root --boot --register=no --keep-unit --private-network \
            --bind=/dev/net/tun --capability=CAP_NET_ADMIN >/mnt/boot 2>&1 </dev/null || true
        cat $root/sm/said || cat /mnt/boot
        "#,
        client.display(),
        relay.display()
    );
    let output = Command::new("unshare")
        .args(["--mount", "bash", "-c", &outside])
        .current_dir(ROOT)
        .envs([("STEPS", STEPS), ("UNIT", UNIT)])
        .output()
        .unwrap();
    let [said, wrong] = [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned());
    assert!(said.lines().any(|l| l == "came to the end"), "{said}\n{wrong}");
}
