//! Files that survive a crash at any moment, and say so when they did not.
//!
//! A directory (0700) belongs to one process at a time ([`Dir::open`] takes a lock) and holds files (0600),
//! each replaced as a whole: a temporary file is written and synced, the version before it becomes
//! `NAME.bak`, a rename puts the new one in place, and the directory is synced before [`Dir::write`]
//! returns. So after a crash `NAME` is the old or the new version, complete.
//!
//! Disks rot nevertheless. Every file begins with a line of format, the length and the BLAKE3 hash of its
//! content. [`View::read`] gives the last good version and says where it is from; a caller for which an old
//! version is dangerous (counters, one-time keys) must look at [`Stored::origin`]. A damaged file never
//! replaces a good `.bak`.
//!
//! Nothing here holds a copy of the content after the call; what is secret is the caller's to wipe.

use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, openat};
use nix::sys::stat::Mode;

use crate::privilege::Ids;

const MAGIC: &[u8; 16] = b"shadowmesh-file1";
const HEADER: usize = 16 + 8 + 32;
const LOCK: &str = "lock";
/// A lock that is held is tried again so often, with this between.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);
/// No state of ours is near this; a file that claims more is damaged.
const MAX_LEN: u64 = 256 << 20;

/// What went wrong with a state file, in words for the user.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the directory.
    #[error("{dir} is in use by another ShadowMesh process{}", pid.map(|p| format!(" (pid {p})")).unwrap_or_default())]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// Who has it, if it wrote that down.
        pid: Option<u32>,
    },
    /// No space, or no quota.
    #[error("the disk is full: {0} could not be written; the version before it is untouched")]
    DiskFull(PathBuf),
    /// Not allowed, or mounted read-only.
    #[error("{path} is not accessible to this user ({source})")]
    Permission {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file and its backup are both unreadable as what they should be.
    #[error("state file {0} is damaged, and there is no good version before it")]
    Damaged(PathBuf),
    /// A name that is not one.
    #[error("`{0}` is not a name for a state file")]
    Name(String),
    /// The disk itself, or something else.
    #[error("{path} could not be {what}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Read or written.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Where the content that was read comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The file itself.
    Current,
    /// The version before the last, because the last is damaged or missing.
    Backup,
}

/// Content of a file, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The bytes that were written.
    pub bytes: Vec<u8>,
    /// Which version this is.
    pub origin: Origin,
}

/// A state directory to look at without owning it: what is read is complete, but may be replaced meanwhile.
#[derive(Debug, Clone)]
pub struct View {
    path: PathBuf,
}

/// A state directory that this process owns until the value and those made by [`Dir::sub`] are gone.
#[derive(Debug, Clone)]
pub struct Dir {
    view: View,
    owner: Arc<Owner>,
}

/// What all values for one state directory share.
#[derive(Debug)]
struct Owner {
    _lock: Flock<File>,
    /// Held over each change, so that threads do not meet in a temporary file.
    changing: Mutex<()>,
}

impl std::ops::Deref for Dir {
    type Target = View;
    fn deref(&self) -> &View {
        &self.view
    }
}

impl View {
    /// Looks into a directory, which need not exist.
    pub fn new(path: impl Into<PathBuf>) -> View {
        View { path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads a file. `None`: there is none.
    pub fn read(&self, name: &str) -> Result<Option<Stored>, StoreError> {
        check(name)?;
        let path = self.path.join(name);
        let damaged = match load(&path)? {
            Loaded::Good(bytes) => return Ok(Some(Stored { bytes, origin: Origin::Current })),
            Loaded::Damaged => true,
            Loaded::Missing => false,
        };
        match load(&backup(&path))? {
            Loaded::Good(bytes) => Ok(Some(Stored { bytes, origin: Origin::Backup })),
            Loaded::Missing if !damaged => Ok(None),
            _ => Err(StoreError::Damaged(path)),
        }
    }

    /// Names of the files, sorted; backups, the lock, directories and foreign names left out.
    pub fn list(&self) -> Result<Vec<String>, StoreError> {
        let entries = match std::fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(wrap(&self.path, "read")(e)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(wrap(&self.path, "read"))?;
            let plain = entry.file_type().is_ok_and(|t| t.is_file());
            if let Some(name) = entry.file_name().to_str().filter(|n| plain && check(n).is_ok()) {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }
}

impl Dir {
    /// Makes the directory if need be, closes it to others (0700), locks it, and removes temporary files
    /// that a crash left.
    pub fn open(path: impl Into<PathBuf>) -> Result<Dir, StoreError> {
        let path = path.into();
        make(&path)?;
        let lock_path = path.join(LOCK);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file =
            options.custom_flags(libc::O_NOFOLLOW).open(&lock_path).map_err(wrap(&lock_path, "opened"))?;
        // A process that was killed holds its lock until its last thread is gone: a moment, not a reason to fail.
        let mut tried = Flock::lock(file, FlockArg::LockExclusiveNonblock);
        for _ in 0..LOCK_TRIES {
            let Err((file, Errno::EWOULDBLOCK)) = tried else { break };
            std::thread::sleep(LOCK_PAUSE);
            tried = Flock::lock(file, FlockArg::LockExclusiveNonblock);
        }
        let mut lock = match tried {
            Ok(lock) => lock,
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut text = String::new();
                let pid = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
                return Err(StoreError::Locked { dir: path, pid });
            }
            Err((_, e)) => return Err(wrap(&lock_path, "locked")(e.into())),
        };
        // For the message above only; a full disk must not keep the daemon from starting.
        let _unsaid =
            lock.set_len(0).and_then(|()| lock.write_all(format!("{}\n", std::process::id()).as_bytes()));
        tidy(&path)?;
        let owner = Owner { _lock: lock, changing: Mutex::new(()) };
        Ok(Dir { view: View { path }, owner: Arc::new(owner) })
    }

    /// A directory inside, made if need be, under the same lock.
    pub fn sub(&self, name: &str) -> Result<Dir, StoreError> {
        check(name)?;
        let path = self.path.join(name);
        let _alone = self.change();
        make(&path)?;
        tidy(&path)?;
        Ok(Dir { view: View { path }, owner: self.owner.clone() })
    }

    fn change(&self) -> MutexGuard<'_, ()> {
        // It guards no data: what another thread left half done is a temporary file.
        self.owner.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces a file; durable when it returns. On error the version before it is untouched.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        check(name)?;
        let path = self.path.join(name);
        let temporary = self.path.join(format!(".{name}.new.tmp"));
        let _alone = self.change();
        let result = self.replace(&path, &temporary, bytes);
        if result.is_err() {
            let _gone_or_renamed = std::fs::remove_file(&temporary);
        }
        result
    }

    fn replace(&self, path: &Path, temporary: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let written = wrap(path, "written");
        let _left_by_an_error = std::fs::remove_file(temporary);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let mut file = options.open(temporary).map_err(&written)?;
        file.write_all(&header(bytes)).map_err(&written)?;
        file.write_all(bytes).map_err(&written)?;
        file.sync_all().map_err(&written)?;
        drop(file);
        if matches!(load(path)?, Loaded::Good(_)) {
            // A second name for the version in place, then that name becomes the backup: there is no moment
            // without `NAME`, and none without a good version.
            let link = path.with_file_name(format!(".{}.bak.tmp", file_name(path)));
            let _left_by_a_crash = std::fs::remove_file(&link);
            std::fs::hard_link(path, &link).map_err(&written)?;
            std::fs::rename(&link, backup(path)).map_err(&written)?;
        }
        std::fs::rename(temporary, path).map_err(&written)?;
        sync_dir(&self.path)
    }

    /// Removes a file and its backup; durable when it returns. That there is none is no error.
    pub fn remove(&self, name: &str) -> Result<(), StoreError> {
        check(name)?;
        let path = self.path.join(name);
        let _alone = self.change();
        // The backup first: the other way round a crash between would bring the old version back to life.
        for path in [backup(&path), path] {
            remove(&path)?;
        }
        sync_dir(&self.path)
    }

    /// Removes the version before the present one, for content that must not be found again.
    pub fn forget_backup(&self, name: &str) -> Result<(), StoreError> {
        check(name)?;
        let _alone = self.change();
        remove(&backup(&self.path.join(name)))?;
        sync_dir(&self.path)
    }
}

/// Gives a state directory, made if need be, with what is in it to another user, before root becomes that
/// user. Links are neither followed nor changed, nor files with more than one name.
pub fn hand_over(path: &Path, to: Ids) -> Result<(), StoreError> {
    make(path)?;
    let flags = libc::O_NOFOLLOW | libc::O_DIRECTORY;
    let dir = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(wrap(path, "opened"))?;
    hand_over_within(&dir, path, to)
}

/// Everything is opened from the directory's descriptor: by path, that user could put a link to somewhere
/// else in its place meanwhile, and root would follow. `path` is for messages.
fn hand_over_within(dir: &File, path: &Path, to: Ids) -> Result<(), StoreError> {
    let listed = format!("/proc/self/fd/{}", dir.as_raw_fd());
    for entry in std::fs::read_dir(listed).map_err(wrap(path, "read"))? {
        let name = entry.map_err(wrap(path, "read"))?.file_name();
        let inner = path.join(&name);
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = match openat(dir, name.as_os_str(), flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            // A link; a socket; gone meanwhile.
            Err(Errno::ELOOP | Errno::ENXIO | Errno::ENOENT) => continue,
            Err(e) => return Err(wrap(&inner, "opened")(e.into())),
        };
        let meta = file.metadata().map_err(wrap(&inner, "read"))?;
        if meta.is_dir() {
            hand_over_within(&file, &inner, to)?;
        } else if meta.is_file() && meta.nlink() == 1 {
            give(&file, &meta, &inner, to)?;
        }
    }
    let meta = dir.metadata().map_err(wrap(path, "read"))?;
    give(dir, &meta, path, to)
}

fn give(file: &File, meta: &Metadata, path: &Path, to: Ids) -> Result<(), StoreError> {
    if (meta.uid(), meta.gid()) == (to.uid, to.gid) {
        return Ok(());
    }
    fchown(file, Some(to.uid), Some(to.gid)).map_err(wrap(path, "handed over"))
}

enum Loaded {
    Good(Vec<u8>),
    Damaged,
    Missing,
}

fn load(path: &Path) -> Result<Loaded, StoreError> {
    let failed = wrap(path, "read");
    let mut options = OpenOptions::new();
    let mut file = match options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Loaded::Missing),
        Err(e) => return Err(failed(e)),
    };
    let mut head = [0; HEADER];
    let mut bytes = Vec::new();
    let result = file.read_exact(&mut head).and_then(|()| {
        // Its true length plus one, so that the buffer is not moved while it grows over a secret.
        let size = file.metadata()?.len().saturating_sub(HEADER as u64);
        if size > MAX_LEN {
            return Ok(());
        }
        bytes.reserve_exact(size as usize + 1);
        file.take(size + 1).read_to_end(&mut bytes).map(drop)
    });
    match result {
        Ok(()) if head == header(&bytes) => Ok(Loaded::Good(bytes)),
        Ok(()) => Ok(Loaded::Damaged),
        // Too short for a header; or a sector that cannot be read, which the backup may make good.
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(Loaded::Damaged),
        Err(e) if e.raw_os_error() == Some(libc::EIO) => Ok(Loaded::Damaged),
        Err(e) => Err(failed(e)),
    }
}

fn header(bytes: &[u8]) -> [u8; HEADER] {
    let mut head = [0; HEADER];
    head[..16].copy_from_slice(MAGIC);
    head[16..24].copy_from_slice(&(bytes.len() as u64).to_be_bytes());
    head[24..].copy_from_slice(blake3::hash(bytes).as_bytes());
    head
}

fn make(path: &Path) -> Result<(), StoreError> {
    let mut builder = std::fs::DirBuilder::new();
    if let Err(e) = builder.mode(0o700).create(path) {
        match e.kind() {
            io::ErrorKind::AlreadyExists => {}
            io::ErrorKind::NotFound => {
                // The parents are ordinary directories, ours alone is closed.
                if let Some(parent) = path.parent() {
                    std::fs::create_dir_all(parent).map_err(wrap(parent, "made"))?;
                }
                builder.create(path).map_err(wrap(path, "made"))?;
            }
            _ => return Err(wrap(path, "made")(e)),
        }
    }
    let meta = std::fs::metadata(path).map_err(wrap(path, "opened"))?;
    if !meta.is_dir() {
        return Err(wrap(path, "opened")(io::Error::from_raw_os_error(libc::ENOTDIR)));
    }
    if meta.mode() & 0o777 != 0o700 {
        std::fs::set_permissions(path, Permissions::from_mode(0o700))
            .map_err(wrap(path, "closed to others"))?;
    }
    Ok(())
}

/// Removes temporary files. Only under the lock: without it they may be another process's work.
fn tidy(path: &Path) -> Result<(), StoreError> {
    for entry in std::fs::read_dir(path).map_err(wrap(path, "read"))? {
        let entry = entry.map_err(wrap(path, "read"))?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|n| n.starts_with('.') && n.ends_with(".tmp")) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(wrap(path, "removed")(e)),
        _ => Ok(()),
    }
}

fn sync_dir(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|d| d.sync_all()).map_err(wrap(path, "written"))
}

fn check(name: &str) -> Result<(), StoreError> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let bad = name.is_empty()
        || name.len() > 200
        || name == LOCK
        || name.starts_with('.')
        || name.ends_with(".bak")
        || !name.bytes().all(fine);
    if bad { Err(StoreError::Name(name.into())) } else { Ok(()) }
}

fn file_name(path: &Path) -> std::borrow::Cow<'_, str> {
    path.file_name().unwrap_or_default().to_string_lossy()
}

fn backup(path: &Path) -> PathBuf {
    path.with_file_name(format!("{}.bak", file_name(path)))
}

fn wrap(path: &Path, what: &'static str) -> impl Fn(io::Error) -> StoreError {
    let path = path.to_path_buf();
    move |source| match source.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => StoreError::DiskFull(path.clone()),
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => {
            StoreError::Permission { path: path.clone(), source }
        }
        _ => StoreError::Io { path: path.clone(), what, source },
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
