//! Becoming an unprivileged user.
//!
//! The daemon starts as root, opens what only root may, and calls [`drop_to`], once, **before any thread is
//! started**: capabilities and `NO_NEW_PRIVS` belong to threads, so a thread that exists already would keep
//! root's. The call checks that and refuses. Afterwards the process cannot get anything back, not by
//! executing a set-uid program either.

use std::io;

use caps::{CapSet, Capability, CapsHashSet};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, User, geteuid, setgroups, setresgid, setresuid};

/// The user that the programs of ShadowMesh become.
pub const USER: &str = "shadowmesh";

/// Why the privileges are as they were.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// There is no such user.
    #[error("there is no user `{0}` on this machine; `scripts/install` makes it")]
    NoUser(String),
    /// The user is root.
    #[error("`{0}` is root under another name; nothing would be dropped")]
    UserIsRoot(String),
    /// Not started by root.
    #[error("only root can become another user")]
    NotRoot,
    /// Called too late.
    #[error("privileges must be dropped before threads are started, and {0} are running")]
    Threads(usize),
    /// The kernel refused a step.
    #[error("privileges could not be dropped ({step}): {source}")]
    Failed {
        /// Which step.
        step: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Everything reported success and yet something is left.
    #[error("privileges were dropped but {0} is still there")]
    Left(&'static str),
}

/// What to become and what to keep.
#[derive(Debug, Clone, Copy)]
pub struct DropOptions<'a> {
    /// Name of the user; [`USER`] outside tests.
    pub user: &'a str,
    /// Keep `CAP_NET_ADMIN`, for interfaces and routes. The daemon does, a relay does not.
    pub keep_net_admin: bool,
    /// Refuse core dumps and other processes' debuggers, since memory holds keys.
    pub no_core_dumps: bool,
}

impl Default for DropOptions<'static> {
    fn default() -> Self {
        DropOptions { user: USER, keep_net_admin: true, no_core_dumps: true }
    }
}

/// Numbers of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ids {
    /// User.
    pub uid: u32,
    /// The user's own group.
    pub gid: u32,
}

/// Looks a user up; the daemon does so first, to hand its directories over before it drops.
pub fn lookup(user: &str) -> Result<Ids, PrivilegeError> {
    match User::from_name(user) {
        Ok(Some(u)) => Ok(Ids { uid: u.uid.as_raw(), gid: u.gid.as_raw() }),
        Ok(None) => Err(PrivilegeError::NoUser(user.into())),
        Err(e) => Err(failed("looking the user up")(e)),
    }
}

/// Becomes the user for good. Returns who that is.
pub fn drop_to(options: DropOptions<'_>) -> Result<Ids, PrivilegeError> {
    if !geteuid().is_root() {
        return Err(PrivilegeError::NotRoot);
    }
    let ids = lookup(options.user)?;
    if ids.uid == 0 {
        return Err(PrivilegeError::UserIsRoot(options.user.into()));
    }
    let threads = std::fs::read_dir("/proc/self/task")
        .map(Iterator::count)
        .map_err(|source| PrivilegeError::Failed { step: "counting threads in /proc", source })?;
    if threads > 1 {
        return Err(PrivilegeError::Threads(threads));
    }
    if options.no_core_dumps {
        forbid_core_dumps()?;
    }

    let keep: CapsHashSet =
        if options.keep_net_admin { [Capability::CAP_NET_ADMIN].into() } else { [].into() };
    // The bounding set first: emptying it takes CAP_SETPCAP, which is gone after that.
    caps::clear(None, CapSet::Bounding).map_err(caps_failed("bounding set"))?;
    caps::clear(None, CapSet::Ambient).map_err(caps_failed("ambient set"))?;

    let (uid, gid) = (Uid::from_raw(ids.uid), Gid::from_raw(ids.gid));
    prctl::set_keepcaps(true).map_err(failed("PR_SET_KEEPCAPS"))?;
    setgroups(&[gid]).map_err(failed("supplementary groups"))?;
    setresgid(gid, gid, gid).map_err(failed("group"))?;
    setresuid(uid, uid, uid).map_err(failed("user"))?;
    prctl::set_keepcaps(false).map_err(failed("PR_SET_KEEPCAPS"))?;

    // Permitted survived the change of user whole, effective is empty. Effective must not exceed permitted.
    caps::clear(None, CapSet::Effective).map_err(caps_failed("effective set"))?;
    caps::clear(None, CapSet::Inheritable).map_err(caps_failed("inheritable set"))?;
    caps::set(None, CapSet::Permitted, &keep).map_err(caps_failed("permitted set"))?;
    caps::set(None, CapSet::Effective, &keep).map_err(caps_failed("effective set"))?;
    prctl::set_no_new_privs().map_err(failed("PR_SET_NO_NEW_PRIVS"))?;
    if options.no_core_dumps {
        // The change of user may have set it anew.
        forbid_core_dumps()?;
    }
    verify(ids, &keep)?;
    Ok(ids)
}

/// The steps above each reported success; this looks at what came of them.
fn verify(ids: Ids, keep: &CapsHashSet) -> Result<(), PrivilegeError> {
    if setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).is_ok()
        || geteuid().as_raw() != ids.uid
    {
        return Err(PrivilegeError::Left("the way back to root"));
    }
    let sets = [
        (CapSet::Permitted, true, "a permitted capability"),
        (CapSet::Effective, true, "an effective capability"),
        (CapSet::Inheritable, false, "an inheritable capability"),
        (CapSet::Ambient, false, "an ambient capability"),
        (CapSet::Bounding, false, "a capability in the bounding set"),
    ];
    for (set, kept, what) in sets {
        let now = caps::read(None, set).map_err(caps_failed("reading capabilities"))?;
        let right = if kept { now == *keep } else { now.is_empty() };
        if !right {
            return Err(PrivilegeError::Left(what));
        }
    }
    Ok(())
}

/// Keeps this process's memory out of core dumps and away from other users' debuggers. Its files in `/proc`
/// belong to root from then on.
pub fn forbid_core_dumps() -> Result<(), PrivilegeError> {
    prctl::set_dumpable(false).map_err(failed("PR_SET_DUMPABLE"))?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(failed("RLIMIT_CORE"))
}

/// Whether the calling thread may change interfaces.
pub fn has_cap_net_admin() -> bool {
    caps::has_cap(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap_or(false)
}

fn failed(step: &'static str) -> impl Fn(Errno) -> PrivilegeError {
    move |e| PrivilegeError::Failed { step, source: e.into() }
}

fn caps_failed(step: &'static str) -> impl Fn(caps::errors::CapsError) -> PrivilegeError {
    move |e| PrivilegeError::Failed { step, source: io::Error::other(e.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Dropping itself is tested in tests/processes.rs: it needs a process of its own.

    #[test]
    fn a_missing_user_is_named_with_what_makes_it() {
        let text = lookup("nobody-has-this-name").unwrap_err().to_string();
        assert!(text.contains("nobody-has-this-name") && text.contains("scripts/install"), "{text}");
    }

    #[test]
    fn a_threaded_process_is_refused_and_unchanged() {
        if !geteuid().is_root() {
            panic!("run as root: sudo -E cargo test -p shadowmesh-host");
        }
        let options = DropOptions { user: "nobody", ..DropOptions::default() };
        // The test runner has threads of its own.
        assert!(matches!(drop_to(options), Err(PrivilegeError::Threads(n)) if n > 1));
        assert!(geteuid().is_root() && has_cap_net_admin());
    }

    #[test]
    fn root_is_no_user_to_become() {
        if geteuid().is_root() {
            let options = DropOptions { user: "root", ..DropOptions::default() };
            assert!(matches!(drop_to(options), Err(PrivilegeError::UserIsRoot(_))));
        }
    }
}
