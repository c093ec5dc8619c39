//! `scripts/install` and `scripts/uninstall`, on copies of `/etc`, `/usr/local` and `/var/lib` that only this
//! test sees.
#![allow(clippy::unwrap_used, reason = "a test; clippy exempts only functions marked as such")]

use std::process::Command;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// Runs a script of steps where nothing that it changes is seen outside; panics if a step fails.
fn apart(steps: &str) -> String {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root; run: sudo -E make test");
    // Overlays whose changes are in memory; no service manager is there to be told.
    let prelude = r##"
        set -eu
        mount --make-rprivate /
        mount -t tmpfs tmpfs /mnt
        for d in /etc /usr/local /usr/share /var/lib; do
            n=$(echo $d | tr / _)
            mkdir /mnt/u$n /mnt/w$n
            mount -t overlay overlay -o lowerdir=$d,upperdir=/mnt/u$n,workdir=/mnt/w$n $d
        done
        mount -t tmpfs tmpfs /run
        userdel shadowmesh 2>/dev/null || true
        groupdel shadowmesh 2>/dev/null || true
        rm -rf /etc/shadowmesh /var/lib/shadowmesh /var/lib/shadowmesh-relay /usr/local/bin/shadowmesh*
        mkdir /mnt/from
        for p in shadowmesh shadowmesh-relay; do
            printf '#!/bin/sh\n[ "$1" != completion ] || echo "# completion of $0"\n' > /mnt/from/$p
            chmod 755 /mnt/from/$p
        done
        # `set -e` does not see a `!`.
        no() { if "$@"; then echo "worked, and must not: $*"; exit 1; fi; }
        set -x
    "##;
    let output = Command::new("unshare")
        .args(["--mount", "bash", "-c", &format!("{prelude}\n{steps}")])
        .current_dir(ROOT)
        .env_remove("DESTDIR")
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned());
    assert!(output.status.success(), "{}\n{}", text[0], text[1]);
    text[0].clone()
}

#[test]
fn installing_makes_all_that_is_needed_and_can_be_repeated() {
    let said = apart(
        r#"
        scripts/install --from /mnt/from
        [ "$(stat -c '%U %a' /var/lib/shadowmesh)" = "shadowmesh 700" ]
        [ "$(stat -c '%U %a' /usr/local/bin/shadowmesh)" = "root 755" ]
        [ "$(getent passwd shadowmesh | cut -d: -f7)" = /usr/sbin/nologin ]
        [ "$(id -u shadowmesh)" -ne 0 ]
        [ -f /etc/systemd/system/shadowmesh.service ]
        [ -f /etc/systemd/system/shadowmesh-relay.service ]
        echo secret > /var/lib/shadowmesh/identity
        echo 'name: x' > /etc/shadowmesh/config.yaml
        scripts/install --from /mnt/from
        [ "$(cat /var/lib/shadowmesh/identity)" = secret ]
        [ "$(cat /etc/shadowmesh/config.yaml)" = 'name: x' ]
        [ -z "$(ls -A /usr/local/bin | grep new)" ]
        "#,
    );
    assert!(said.contains("✓ user         shadowmesh"), "{said}");
    assert_eq!(said.matches("✓ user").count(), 1, "{said}");
}

#[test]
fn uninstalling_leaves_the_identity_and_says_where_it_is() {
    let said = apart(
        r#"
        scripts/install --from /mnt/from
        echo secret > /var/lib/shadowmesh/identity
        scripts/uninstall
        [ "$(cat /var/lib/shadowmesh/identity)" = secret ]
        [ ! -e /var/lib/shadowmesh-relay ]
        [ ! -e /etc/shadowmesh ]
        getent passwd shadowmesh
        scripts/uninstall --purge
        no getent passwd shadowmesh
        no getent group shadowmesh
        for d in /usr/local /etc /var/lib /usr/share; do
            [ -z "$(find $d -name '*shadowmesh*' -print -quit)" ]
        done
        "#,
    );
    assert!(said.contains("/var/lib/shadowmesh\n"), "{said}");
}

#[test]
fn without_an_identity_nothing_is_left() {
    apart(
        r#"
        scripts/install --from /mnt/from
        scripts/uninstall
        no getent passwd shadowmesh
        for d in /usr/local /etc /var/lib /usr/share; do
            [ -z "$(find $d -name '*shadowmesh*' -print -quit)" ]
        done
        "#,
    );
}

#[test]
fn what_is_missing_is_said() {
    let said = apart(
        r#"
        mkdir /mnt/empty
        no scripts/install --from /mnt/empty 2>&1
        no scripts/install --wrong 2>&1
        no setpriv --reuid=65534 --regid=65534 --clear-groups scripts/install --from /mnt/from 2>&1
        no setpriv --reuid=65534 --regid=65534 --clear-groups scripts/uninstall 2>&1
        "#,
    );
    for words in
        ["there are no programs in /mnt/empty", "only root can install", "only root can uninstall", "--wrong"]
    {
        assert!(said.contains(words), "{words}:\n{said}");
    }
}

#[test]
fn the_units_are_understood() {
    // With programs in place, or it would complain that there are none.
    let said = apart(
        r#"
        DESTDIR= scripts/install --from /mnt/from >/dev/null
        command -v systemd-analyze >/dev/null || exit 0
        systemd-analyze verify --man=no /etc/systemd/system/shadowmesh*.service 2>&1
        systemd-analyze security --offline=yes --no-pager /etc/systemd/system/shadowmesh.service | tail -1
        systemd-analyze security --offline=yes --no-pager /etc/systemd/system/shadowmesh-relay.service | tail -1
        "#,
    );
    println!("{said}");
    for wrong in ["Unknown", "Failed to parse", "Invalid", "ignoring"] {
        assert!(!said.contains(wrong), "{said}");
    }
}
