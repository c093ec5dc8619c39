//! What people see: as wide as their terminal at most, and nothing left out by that.
#![allow(clippy::unwrap_used, reason = "a test; clippy exempts only functions marked as such")]

use std::collections::BTreeSet;
use std::process::Stdio;

use shadowmesh_netns_tests::{Evening, Lab, Machine};

/// What a command shows on a terminal of so many columns.
fn on_terminal(machine: &Machine, columns: u32, arguments: &str) -> String {
    let program = Lab::binary("shadowmesh");
    let line = format!("stty cols {columns} && exec {} {arguments}", program.display());
    let mut command = machine.host.command("script");
    command.args(["-qec", &line, "/dev/null"]).env("SHADOWMESH_DIR", &machine.directory);
    let output = command.env("NO_COLOR", "1").stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    println!("{columns} columns: {arguments}\n{text}");
    text
}

fn widest(text: &str) -> usize {
    text.lines().map(|l| l.trim_end().chars().count()).max().unwrap()
}

/// Words without what is measured meanwhile.
fn words(text: &str) -> BTreeSet<&str> {
    text.split_whitespace().filter(|w| w.parse::<f64>().is_err() && !["—", "%"].contains(w)).collect()
}

#[test]
fn tables_fit_the_terminal() {
    let e = Evening::new("eighty columns", &["laptop", "pi", "nas"]);
    e.network("home");
    let laptop = &e.machines[0];
    for command in ["status", "peers"] {
        // In a pipe, whatever its width, a peer is a line.
        let wide = laptop.must(&[command]);
        assert!(widest(&wide) > 80, "{wide}");
        assert_eq!(words(&on_terminal(laptop, 200, command)), words(&wide));
        assert_eq!(on_terminal(laptop, 200, command).lines().count(), wide.lines().count());
        for columns in [80, 60] {
            let narrow = on_terminal(laptop, columns, command);
            assert!(widest(&narrow) <= columns as usize, "{narrow}");
            assert_eq!(words(&narrow), words(&wide));
        }
    }
}
