//! A program that a test started: its output in a file, its end with the value.

use std::cell::RefCell;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait_until;

/// A running program. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    label: String,
    child: RefCell<Child>,
    stdin: RefCell<Option<ChildStdin>>,
    log: PathBuf,
}

impl Process {
    /// Starts a command with both outputs into `<label>.log`, which is added to when there is one already.
    pub(crate) fn start(label: &str, directory: &Path, mut command: Command) -> Process {
        let log = directory.join(format!("{label}.log"));
        let file = File::options().create(true).append(true).open(&log).expect("a file for output");
        let second = file.try_clone().expect("the same file twice");
        command.stdin(Stdio::piped()).stdout(file).stderr(second);
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?} did not start: {e}"));
        let stdin = RefCell::new(child.stdin.take());
        Process { label: label.into(), child: RefCell::new(child), stdin, log }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.borrow().id()
    }

    /// Where its output goes.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// All that it has printed so far, both outputs in order.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Writes a line to its input.
    pub fn say(&self, line: &str) {
        let mut stdin = self.stdin.borrow_mut();
        let pipe = stdin.as_mut().unwrap_or_else(|| panic!("{} has no input", self.label));
        writeln!(pipe, "{line}")
            .and_then(|()| pipe.flush())
            .unwrap_or_else(|e| panic!("{}: {e}", self.label));
    }

    /// Waits until `text` was printed; panics when the time is over or the program ended without it.
    pub fn wait_for(&self, text: &str, timeout: Duration) -> String {
        wait_until(&format!("`{text}` from {}", self.label), timeout, || {
            let ended = self.exit_status();
            let output = self.output();
            if output.contains(text) {
                return Some(output);
            }
            if let Some(status) = ended {
                panic!("{} ended ({status}) without saying `{text}`:\n{output}", self.label);
            }
            None
        })
    }

    /// Its end, if it ended.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.child.borrow_mut().try_wait().expect("asking for a child's end")
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.exit_status().is_none()
    }

    /// Waits for its end.
    pub fn wait(&self, timeout: Duration) -> ExitStatus {
        wait_until(&format!("the end of {}", self.label), timeout, || self.exit_status())
    }

    /// Sends a signal; nothing if it has ended.
    pub fn signal(&self, signal: Signal) {
        if self.is_running() {
            kill(Pid::from_raw(self.id() as i32), signal).unwrap_or_else(|e| panic!("{}: {e}", self.label));
        }
    }

    /// SIGKILL, and waits.
    pub fn kill(&self) {
        let mut child = self.child.borrow_mut();
        let _ended = child.kill();
        let _status = child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
