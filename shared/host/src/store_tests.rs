//! Tests of `store`. That a kill at any moment leaves a complete version is tested in tests/processes.rs.

use super::*;

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("sm-store-{}-{name}", std::process::id()));
        let _absent = std::fs::remove_dir_all(&path);
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _left = std::fs::remove_dir_all(&self.0);
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().mode() & 0o7777
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

fn got(bytes: &[u8], origin: Origin) -> Option<Stored> {
    Some(Stored { bytes: bytes.to_vec(), origin })
}

#[test]
fn writes_reads_lists_and_removes_with_the_right_modes() {
    let s = Scratch::new("basic");
    let dir = Dir::open(s.0.join("a/b")).unwrap();
    assert_eq!(mode(dir.path()), 0o700);
    assert_eq!(dir.read("x").unwrap(), None);
    for (i, content) in [&b""[..], b"one", &[7; 100_000]].iter().enumerate() {
        dir.write("x", content).unwrap();
        assert_eq!(dir.read("x").unwrap(), got(content, Origin::Current), "{i}");
    }
    assert_eq!(mode(&dir.path().join("x")), 0o600);
    assert_eq!(mode(&dir.path().join("x.bak")), 0o600);
    dir.write("y.json", b"2").unwrap();
    let sub = dir.sub("home").unwrap();
    sub.write("x", b"inner").unwrap();
    assert_eq!(mode(sub.path()), 0o700);
    assert_eq!(dir.list().unwrap(), ["x", "y.json"]);
    dir.remove("x").unwrap();
    dir.remove("x").unwrap();
    assert_eq!(dir.read("x").unwrap(), None);
    assert_eq!(dir.list().unwrap(), ["y.json"]);
    assert_eq!(sub.read("x").unwrap(), got(b"inner", Origin::Current));
}

#[test]
fn an_open_directory_is_closed_to_others() {
    let s = Scratch::new("mode");
    std::fs::create_dir(&s.0).unwrap();
    std::fs::set_permissions(&s.0, Permissions::from_mode(0o755)).unwrap();
    Dir::open(&s.0).unwrap();
    assert_eq!(mode(&s.0), 0o700);
}

#[test]
fn every_flipped_bit_is_noticed_and_the_backup_serves() {
    let s = Scratch::new("rot");
    let dir = Dir::open(&s.0).unwrap();
    dir.write("x", b"old").unwrap();
    dir.write("x", b"new").unwrap();
    let path = dir.path().join("x");
    let whole = std::fs::read(&path).unwrap();
    for at in 0..whole.len() {
        flip(&path, at);
        assert_eq!(dir.read("x").unwrap(), got(b"old", Origin::Backup), "byte {at}");
        std::fs::write(&path, &whole).unwrap();
    }
    for len in 0..whole.len() {
        std::fs::write(&path, &whole[..len]).unwrap();
        assert_eq!(dir.read("x").unwrap(), got(b"old", Origin::Backup), "cut to {len}");
    }
    std::fs::write(&path, [&whole[..], b"more"].concat()).unwrap();
    assert_eq!(dir.read("x").unwrap().unwrap().origin, Origin::Backup);

    // A write over a damaged file does not make the damage the backup.
    dir.write("x", b"third").unwrap();
    assert_eq!(dir.read("x").unwrap(), got(b"third", Origin::Current));
    flip(&path, 60);
    assert_eq!(dir.read("x").unwrap(), got(b"old", Origin::Backup));

    flip(&dir.path().join("x.bak"), 58);
    let error = dir.read("x").unwrap_err();
    assert!(matches!(&error, StoreError::Damaged(p) if *p == path));
    assert!(error.to_string().contains("is damaged"), "{error}");
}

#[test]
fn a_damaged_file_without_a_backup_is_an_error_not_nothing() {
    let s = Scratch::new("alone");
    let dir = Dir::open(&s.0).unwrap();
    dir.write("x", b"only").unwrap();
    flip(&dir.path().join("x"), 0);
    assert!(matches!(dir.read("x"), Err(StoreError::Damaged(_))));
    dir.write("x", b"again").unwrap();
    dir.write("x", b"twice").unwrap();
    dir.forget_backup("x").unwrap();
    assert!(!dir.path().join("x.bak").exists());
    assert_eq!(dir.read("x").unwrap(), got(b"twice", Origin::Current));
}

#[test]
fn leftovers_of_a_crash_are_removed() {
    let s = Scratch::new("tidy");
    drop(Dir::open(&s.0).unwrap());
    std::fs::write(s.0.join(".x.new.tmp"), b"half").unwrap();
    std::fs::write(s.0.join(".x.bak.tmp"), b"half").unwrap();
    let dir = Dir::open(&s.0).unwrap();
    assert!(!s.0.join(".x.new.tmp").exists() && !s.0.join(".x.bak.tmp").exists());
    std::fs::write(s.0.join(".x.new.tmp"), b"left by a failed remove").unwrap();
    dir.write("x", b"1").unwrap();
    assert_eq!(dir.read("x").unwrap(), got(b"1", Origin::Current));
}

#[test]
fn names_cannot_leave_the_directory_or_clash() {
    let s = Scratch::new("names");
    let dir = Dir::open(&s.0).unwrap();
    for name in ["", ".", "..", "a/b", "../x", ".hidden", "lock", "x.bak", "ä", "a b", &"n".repeat(201)] {
        assert!(matches!(dir.write(name, b""), Err(StoreError::Name(_))), "{name}");
        assert!(matches!(dir.read(name), Err(StoreError::Name(_))), "{name}");
    }
}

#[test]
fn a_link_is_not_followed() {
    let s = Scratch::new("links");
    let dir = Dir::open(&s.0).unwrap();
    dir.write("x", b"1").unwrap();
    std::os::unix::fs::symlink(s.0.join("x"), s.0.join("y")).unwrap();
    assert!(dir.read("y").is_err());
}

#[test]
fn a_view_reads_beside_the_owner_and_a_second_owner_is_refused() {
    let s = Scratch::new("lock");
    let dir = Dir::open(&s.0).unwrap();
    dir.write("x", b"1").unwrap();
    assert_eq!(View::new(&s.0).read("x").unwrap(), got(b"1", Origin::Current));
    let error = Dir::open(&s.0).unwrap_err();
    assert!(matches!(error, StoreError::Locked { pid: Some(p), .. } if p == std::process::id()));
    assert!(error.to_string().contains(&format!("pid {}", std::process::id())), "{error}");
    let sub = dir.sub("s").unwrap();
    drop(dir);
    assert!(Dir::open(&s.0).is_err(), "a sub-directory keeps the lock");
    drop(sub);
    Dir::open(&s.0).unwrap();
    assert_eq!(View::new(s.0.join("absent")).read("x").unwrap(), None);
    assert!(View::new(s.0.join("absent")).list().unwrap().is_empty());
}

#[test]
fn a_full_disk_is_said_and_leaves_the_old_version() {
    assert!(nix::unistd::geteuid().is_root(), "run as root: sudo -E cargo test -p shadowmesh-host");
    let s = Scratch::new("full");
    std::fs::create_dir(&s.0).unwrap();
    // In a mount namespace of this thread alone, so that nothing has to be unmounted.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            use nix::mount::{MsFlags, mount};
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some("tmpfs"), &s.0, Some("tmpfs"), MsFlags::empty(), Some("size=256k")).unwrap();
            let dir = Dir::open(&s.0).unwrap();
            dir.write("x", &[1; 50_000]).unwrap();
            let error = dir.write("x", &[2; 400_000]).unwrap_err();
            assert!(matches!(error, StoreError::DiskFull(_)), "{error}");
            assert_eq!(dir.read("x").unwrap(), got(&[1; 50_000], Origin::Current));
            dir.write("x", &[3; 60_000]).unwrap();
            assert_eq!(dir.read("x").unwrap(), got(&[3; 60_000], Origin::Current));

            drop(dir);
            mount(none, &s.0, none, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none).unwrap();
            assert!(matches!(Dir::open(&s.0), Err(StoreError::Permission { .. })));
            assert_eq!(View::new(&s.0).read("x").unwrap(), got(&[3; 60_000], Origin::Current));
        });
    });
}

#[test]
fn handing_over_changes_owners_but_follows_no_link() {
    assert!(nix::unistd::geteuid().is_root(), "run as root: sudo -E cargo test -p shadowmesh-host");
    let s = Scratch::new("own");
    let dir = Dir::open(s.0.join("state")).unwrap();
    dir.sub("home").unwrap().write("x", b"1").unwrap();
    let victim = s.0.join("victim");
    std::fs::write(&victim, b"root's").unwrap();
    std::os::unix::fs::symlink(&victim, dir.path().join("link")).unwrap();
    std::fs::hard_link(&victim, dir.path().join("hard")).unwrap();
    hand_over(dir.path(), Ids { uid: 65534, gid: 65534 }).unwrap();
    for path in ["", "home", "home/x", "lock"] {
        assert_eq!(std::fs::metadata(dir.path().join(path)).unwrap().uid(), 65534, "{path}");
    }
    assert_eq!(std::fs::metadata(&victim).unwrap().uid(), 0);
}

#[test]
fn threads_that_write_one_file_take_turns() {
    let s = Scratch::new("threads");
    let dir = Dir::open(&s.0).unwrap();
    std::thread::scope(|scope| {
        for t in 0..4u8 {
            let dir = dir.clone();
            scope.spawn(move || {
                for _ in 0..20 {
                    dir.write("x", &vec![t; 1 + usize::from(t) * 10_000]).unwrap();
                    let read = dir.read("x").unwrap().unwrap();
                    assert_eq!(read.origin, Origin::Current);
                    assert_eq!(read.bytes.len(), 1 + usize::from(read.bytes[0]) * 10_000);
                }
            });
        }
    });
    assert_eq!(std::fs::read_dir(&s.0).unwrap().count(), 3);
}
