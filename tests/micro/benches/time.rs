//! Times the hot path's pieces: `cargo bench -p shadowmesh-micro`.

use divan::Bencher;
use divan::counter::ItemsCount;

fn main() {
    divan::main();
}

#[divan::bench(args = shadowmesh_micro::pieces().iter().map(|p| p.name).collect::<Vec<_>>())]
fn piece(bencher: Bencher<'_, '_>, name: &str) {
    let mut pieces = shadowmesh_micro::pieces();
    let Some(piece) = pieces.iter_mut().find(|p| p.name == name) else { return };
    let count = piece.count;
    bencher.counter(ItemsCount::new(count)).bench_local(|| piece.measured_run());
}
