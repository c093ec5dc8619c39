//! One program for all targets: `SHADOWMESH_FUZZ=<target>` chooses.
#![no_main]

use std::sync::LazyLock;

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = std::env::var("SHADOWMESH_FUZZ").unwrap_or_default();
    let found = shadowmesh_fuzz::TARGETS.iter().find(|(n, _)| *n == name);
    found.map(|(_, f)| *f).unwrap_or_else(|| panic!("SHADOWMESH_FUZZ names no target: {name:?}"))
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| TARGET(data));
