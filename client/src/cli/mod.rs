//! The command line: what is asked, of whom, and what is printed.

mod print;
mod settings;
mod show;

use crate::daemon;
use crate::paths::Paths;
use clap::{Args, Parser, Subcommand};
use print::{Printer, fail};
use shadowmesh_control::{Client, Exit, Problem, Status};
use std::path::PathBuf;
use std::process::ExitCode;

/// A private Ethernet between your machines, from anywhere: no account, no server that knows you.
#[derive(Parser)]
#[command(name = "shadowmesh", version, max_term_width = 100, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Args)]
struct Global {
    /// One JSON object in place of text
    #[arg(long, global = true)]
    json: bool,
    /// The network that is meant, where there is more than one
    #[arg(long, global = true, value_name = "NAME")]
    network: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Shows networks, relays and peers
    Status,
    /// Lists the other members
    Peers,
    /// Asks a peer, through the mesh, and shows by which path it answers
    Ping {
        /// A name, an address in the mesh, or a node id
        peer: String,
        /// How many times
        #[arg(short, long, default_value_t = 4)]
        count: u32,
    },
    /// Stops the daemon
    Down,
    /// Looks at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Runs the daemon in the foreground (what the unit starts)
    Daemon,
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Prints all of it, defaults marked
    Show,
    /// Checks a file, and changes nothing
    Check {
        /// The file; the one in use without
        file: Option<PathBuf>,
    },
}

/// Runs the command line to its end.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let paths = Paths::from_env();
    let printer = Printer::new(cli.global.json);
    match run(cli, paths, &printer) {
        Ok(()) => ExitCode::SUCCESS,
        Err(p) => fail(&printer, &p),
    }
}

fn run(cli: Cli, paths: Paths, printer: &Printer) -> Result<(), Problem> {
    match cli.command {
        Command::Daemon => return daemon::run(paths),
        Command::Config(ConfigCommand::Show) => return settings::show(&paths, printer),
        Command::Config(ConfigCommand::Check { file }) => {
            return settings::check(&file.unwrap_or(paths.config), printer);
        }
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Problem::failed(format!("nothing can be run here: {e}")))?;
    runtime.block_on(asked(cli, &paths, printer))
}

/// The commands that ask the daemon.
async fn asked(cli: Cli, paths: &Paths, printer: &Printer) -> Result<(), Problem> {
    let client = Client::new(&paths.socket);
    let wanted = cli.global.network.as_deref();
    match cli.command {
        Command::Status => show::status(&client, wanted, printer).await,
        Command::Peers => show::peers(&client, wanted, printer).await,
        Command::Ping { peer, count } => show::ping(&client, wanted, &peer, count, printer).await,
        Command::Down => {
            let _answer: serde_json::Value = client.post("/v1/shutdown", &()).await?;
            printer.step("down", "all networks");
            Ok(())
        }
        Command::Daemon | Command::Config(_) => Ok(()),
    }
}

/// The network that is meant: the named one, or the only one.
async fn network(client: &Client, wanted: Option<&str>) -> Result<String, Problem> {
    let status: Status = client.get("/v1/status").await?;
    let names: Vec<_> = status.networks.into_iter().map(|n| n.name).collect();
    match (wanted, names.as_slice()) {
        (Some(name), _) if names.iter().any(|n| n == name) => Ok(name.to_owned()),
        (Some(name), _) => Err(Problem::new(Exit::Usage, format!("there is no network \"{name}\" here"))
            .fix("See which there are:  shadowmesh network list")),
        (None, [only]) => Ok(only.clone()),
        (None, []) => Err(Problem::failed("there is no network here yet")
            .fix("Make one:  sudo shadowmesh network create NAME --relay URL")
            .fix("or join:   sudo shadowmesh join URL")),
        (None, _) => {
            Err(Problem::new(Exit::Usage, format!("there are several networks here: {}", names.join(", ")))
                .fix("Say which:  --network NAME"))
        }
    }
}
