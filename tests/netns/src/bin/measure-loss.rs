//! `make bench`: TCP over a link that loses and reorders, bare and through the overlay, in pairs of one seed. Two daemons at
//! the ends of the link; the stream goes once beside them and once through them.

use std::time::Duration;

use shadowmesh_netns_tests::{
    Lab, Measured, Pair, Profile, has_congestion_control, iperf3, median, received_mbit,
};

/// Congestion controls: Linux's usual one, and one that loss does not slow down, where the kernel has it.
const CONTROLS: [&str; 2] = ["cubic", "bbr"];
/// Losses that are tried, shares.
const LOSSES: [f64; 2] = [0.001, 0.01];
/// One way.
const DELAY: Duration = Duration::from_millis(5);
/// Of each stream.
const TIME: Duration = Duration::from_secs(5);
/// What the link carries, so that it is the link and not the processor that decides, kbit/s.
const RATE: u64 = 200_000;

fn main() {
    let runs = std::env::var("LOSS_RUNS").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    let mut measured = Measured::new("bench-loss");
    let known = CONTROLS.iter().filter(|c| has_congestion_control(c));
    let cases = known.flat_map(|c| LOSSES.map(|loss| (*c, loss)));
    for (control, loss) in cases {
        let mut pairs: Vec<[f64; 2]> = (1..=runs).map(|seed| pair(control, loss, seed)).collect();
        pairs.sort_by(|a, b| (a[1] / a[0]).total_cmp(&(b[1] / b[0])));
        let ratio = |n: usize| pairs[n][1] / pairs[n][0];
        let (least, middle, most) = (ratio(0), ratio(pairs.len() / 2), ratio(pairs.len() - 1));
        let bare = median(pairs.iter().map(|p| p[0]).collect());
        let what = format!(
            "{} % loss, 1 % reordered, {control}: TCP over bare TCP ({:.0} Mbit/s), median of {} pairs, {least:.2} to {most:.2}",
            100.0 * loss,
            bare,
            pairs.len()
        );
        measured.line("6-loss", &what, middle, "x", ">= 0.9", middle >= 0.9);
    }
}

/// Mbit/s of a TCP stream over the link as it is, and through the overlay over one of the same seed.
fn pair(control: &str, loss: f64, seed: u64) -> [f64; 2] {
    let profile = Profile {
        delay: DELAY,
        loss,
        kbit: RATE,
        limit: 1000,
        reorder: 0.01,
        reorder_by: Duration::from_millis(1),
        seed,
        ..Profile::default()
    };
    let found = [false, true].map(|through| {
        let mut lab = Lab::new("loss");
        let (a, b) = (lab.host("a"), lab.host("b"));
        let _wire = lab.lossy(&a, &["10.1.0.2/24"], &b, &["10.1.0.3/24"], profile);
        let pair = through.then(|| Pair::start(lab.directory(), [(&a, "10.1.0.2"), (&b, "10.1.0.3")], ""));
        let to = pair.as_ref().map_or("10.1.0.3".into(), Pair::to);
        a.must_reach(&to, 20);
        received_mbit(&iperf3(&a, &b, &to, &["-C", control], TIME, || ()))
    });
    println!("{control}, loss {loss}, seed {seed}: {found:.1?} Mbit/s");
    found
}
