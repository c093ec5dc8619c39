//! Giving back what a daemon needed only to start: the pages of program text that starting, joining and reading the
//! configuration brought in, most of what an idle daemon holds otherwise.
#![expect(unsafe_code, reason = "madvise takes a pointer")]

use std::io;

use nix::sys::mman::{MmapAdvise, madvise};

/// Unmaps the pages of this process's program text; what runs on comes back from the file (or the page cache) as it is
/// called, a few hundred faults. Gives the bytes of text there are.
///
/// # Errors
/// `/proc` is not there, or the kernel refuses.
pub fn forget_text() -> io::Result<usize> {
    let mut bytes = 0;
    for (start, len) in text(&std::fs::read_to_string("/proc/self/maps")?) {
        let Some(at) = std::ptr::NonNull::new(std::ptr::with_exposed_provenance_mut(start)) else { continue };
        // SAFETY: the mapping is of a file and was never writable, so its pages hold what the file holds, and that
        // is what they hold again when they are next touched.
        unsafe { madvise(at, len, MmapAdvise::MADV_DONTNEED) }?;
        bytes += len;
    }
    Ok(bytes)
}

/// Start and length of what `/proc/self/maps` lists as executable, private, not writable, and of a file.
fn text(maps: &str) -> impl Iterator<Item = (usize, usize)> {
    maps.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (range, rights, path) = (words.next()?, words.next()?, words.nth(3)?);
        let (start, end) = range.split_once('-')?;
        let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
        (rights == "r-xp" && path.starts_with('/')).then(|| (start, end.saturating_sub(start)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_text_is_chosen() {
        let maps = "\
5500-5600 r--p 00000000 fe:00 12 /usr/bin/x
5600-5a00 r-xp 00000100 fe:00 12 /usr/bin/x
5a00-5b00 r--p 00000500 fe:00 12 /usr/bin/x
5b00-5c00 rw-p 00000600 fe:00 12 /usr/bin/x
5c00-5d00 rw-p 00000000 00:00 0 [heap]
7000-7100 rwxp 00000000 fe:00 13 /usr/lib/odd.so
7ffe-7fff r-xp 00000000 00:00 0 [vdso]
";
        assert_eq!(text(maps).collect::<Vec<_>>(), [(0x5600, 0x400)]);
    }

    #[test]
    fn the_program_goes_on() {
        let resident = || {
            let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
            let line = status.lines().find_map(|l| l.strip_prefix("RssFile:")).expect("a line");
            line.split_whitespace().next().and_then(|n| n.parse::<usize>().ok()).expect("a number")
        };
        let before = resident();
        assert!(forget_text().expect("given back") > 0);
        assert!(resident() < before, "{before} KiB before, {} after", resident());
    }
}
