//! The command line: what is asked, of whom, and what is printed.

mod change;
mod logs;
mod netcheck;
pub(crate) mod print;
mod settings;
mod show;
mod start;

use crate::daemon;
use crate::lan;
use crate::paths::Paths;
use crate::upnp;
use clap::{Args, CommandFactory, Parser, Subcommand};
use print::{Printer, fail, usage};
use shadowmesh_control::{Client, CreateNetwork, Join, Problem, Status};
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
    /// Makes and looks after networks
    #[command(subcommand)]
    Network(NetworkCommand),
    /// Makes an invite: a URL that lets another machine join
    #[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
    Invite {
        #[command(flatten)]
        new: NewInvite,
        #[command(subcommand)]
        command: Option<InviteCommand>,
    },
    /// Joins a network by an invite
    Join {
        /// The invite (shadowmesh://join/…)
        url: String,
        /// This machine's name in the network
        #[arg(long)]
        name: Option<String>,
    },
    /// Leaves a network: this machine forgets it
    Leave {
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Ends a member for good
    Revoke {
        /// A name, an address in the mesh, or a node id
        peer: String,
        /// Why: left, lost, compromised or replaced
        #[arg(long)]
        reason: Option<String>,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Brings the networks up, and starts the daemon where there is none
    Up,
    /// Takes the networks down, and ends the daemon; with --network only that one
    Down,
    /// Shows networks, relays and peers
    Status,
    /// Lists the other members
    Peers,
    /// Asks a peer, through the mesh, and shows by which path it answers
    Ping {
        /// A name, an address in the mesh, or a node id
        peer: String,
        /// How many times; with --until-direct, at most
        #[arg(short, long)]
        count: Option<u32>,
        /// Ask five times a second, and stop at the first answer by a path that needs no relay
        #[arg(long)]
        until_direct: bool,
    },
    /// Says by which path a peer is reached, why, and what would change it
    Why {
        /// A name, an address in the mesh, or a node id
        peer: String,
    },
    /// Finds out what lies between this machine and the others: NAT, firewall, the router's ports, the relays
    Netcheck {
        /// Ask this relay alone (smr://…); needs no network and no daemon
        #[arg(long, value_name = "URL")]
        relay: Option<String>,
        /// Also find out for how long the router keeps the mapping of who is silent; takes as many seconds
        #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "130",
              value_parser = clap::value_parser!(u64).range(10..=600))]
        lifetime: Option<u64>,
    },
    /// Shows what the daemon has logged
    Logs {
        /// Go on as more comes
        #[arg(short, long)]
        follow: bool,
    },
    /// Looks after this machine's identity
    #[command(subcommand)]
    Identity(IdentityCommand),
    /// Looks at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Prints the version
    Version,
    /// Prints completions for a shell
    Completion {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Runs the daemon in the foreground (what the unit starts)
    Daemon {
        /// Started by another command: a session of its own
        #[arg(long, hide = true)]
        detached: bool,
    },
    /// Prints the manual page
    #[command(hide = true)]
    Man,
    /// Announces a node on its LANs, for the daemon
    #[command(hide = true)]
    Lan {
        /// What is announced
        announced: String,
    },
    /// Asks a router for a port, for the daemon
    #[command(hide = true)]
    Upnp {
        /// What is asked
        asked: String,
    },
}

#[derive(Subcommand)]
enum NetworkCommand {
    /// Makes a network; this machine is its first admin
    Create {
        /// What it is to be called
        name: String,
        /// A relay's URL (smr://…); more than once for more relays
        #[arg(long, value_name = "URL")]
        relay: Vec<String>,
        /// Its IPv4 subnet; one that is free on this machine without
        #[arg(long, value_name = "CIDR")]
        subnet: Option<String>,
        /// This machine's name in it
        #[arg(long, value_name = "NAME")]
        device: Option<String>,
        /// What this machine may bridge: any (host), a host's MAC, vlan:7, or a prefix that the hosts are in; more than
        /// once for more
        #[arg(long, value_name = "WHAT")]
        bridge: Vec<String>,
    },
    /// Lists the networks
    List,
    /// Shows a network
    Show,
    /// Deletes a network from this machine
    Delete {
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Args)]
struct NewInvite {
    /// A name for the machine that is invited
    name: Option<String>,
    /// What it may do: member, guest, relay or exit
    #[arg(long)]
    role: Option<String>,
    /// A tag for it; more than once for more tags
    #[arg(long)]
    tag: Vec<String>,
    /// What it may bridge: any (host), a host's MAC, vlan:7, or a prefix that the hosts are in; more than once for more
    #[arg(long, value_name = "WHAT")]
    bridge: Vec<String>,
    /// For how long the invite is good (30m, 24h, 7d)
    #[arg(long, default_value = "24h")]
    expires: String,
    /// Good for several machines
    #[arg(long)]
    reusable: bool,
    /// Show it as a QR code, too
    #[arg(long)]
    qr: bool,
}

#[derive(Subcommand)]
enum InviteCommand {
    /// Lists the invites made on this machine
    List,
    /// Takes an invite back
    Cancel {
        /// Its id, as `invite list` shows it
        id: String,
    },
}

#[derive(Subcommand)]
enum IdentityCommand {
    /// Shows who this machine is in each network
    Show,
    /// Shows the 24 words that bring the identity back
    Backup,
    /// Brings an identity back from its 24 words (read from the input)
    Restore,
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
        Command::Daemon { detached } => {
            if detached {
                // Fails only for who leads a group already, and then there is nothing to leave.
                let _leader = nix::unistd::setsid();
            }
            return daemon::run(paths);
        }
        Command::Config(ConfigCommand::Show) => return settings::show(&paths, printer),
        Command::Config(ConfigCommand::Check { file }) => {
            return settings::check(&file.unwrap_or(paths.config), printer);
        }
        Command::Logs { follow } => return logs::show(&paths, follow),
        Command::Version => return settings::version(printer),
        Command::Completion { shell } => {
            let mut out = vec![];
            clap_complete::generate(shell, &mut Cli::command(), "shadowmesh", &mut out);
            return settings::raw(&out);
        }
        Command::Lan { announced } => return lan::main(&announced),
        Command::Upnp { asked } => return settings::raw(upnp::main(&asked)?.as_bytes()),
        Command::Man => {
            let mut out = vec![];
            clap_mangen::Man::new(Cli::command())
                .render(&mut out)
                .map_err(|e| Problem::failed(format!("the manual page could not be made: {e}")))?;
            return settings::raw(&out);
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
    let at = At { client: &client, wanted: cli.global.network.as_deref(), printer, paths };
    match cli.command {
        Command::Network(NetworkCommand::Create { name, relay, subnet, device, bridge }) => {
            change::create(&at, CreateNetwork { name, relays: relay, subnet, device, bridge }).await
        }
        Command::Network(NetworkCommand::List) => show::networks(&at).await,
        Command::Network(NetworkCommand::Show) => show::network(&at).await,
        Command::Network(NetworkCommand::Delete { yes }) => change::delete(&at, yes).await,
        Command::Invite { new, command: None } => change::invite(&at, new).await,
        Command::Invite { command: Some(InviteCommand::List), .. } => show::invites(&at).await,
        Command::Invite { command: Some(InviteCommand::Cancel { id }), .. } => change::cancel(&at, &id).await,
        Command::Join { url, name } => change::join(&at, Join { url, device: name }).await,
        Command::Leave { yes } => change::leave(&at, yes).await,
        Command::Revoke { peer, reason, yes } => change::revoke(&at, peer, reason, yes).await,
        Command::Up => change::up(&at).await,
        Command::Down => change::down(&at).await,
        Command::Status => show::status(&at).await,
        Command::Peers => show::peers(&at).await,
        Command::Ping { peer, count, until_direct } => show::ping(&at, &peer, count, until_direct).await,
        Command::Why { peer } => show::why(&at, &peer).await,
        Command::Netcheck { relay, lifetime } => netcheck::show(&at, relay, lifetime).await,
        Command::Identity(IdentityCommand::Show) => show::identity(&at).await,
        Command::Identity(IdentityCommand::Backup) => change::backup(&at).await,
        Command::Identity(IdentityCommand::Restore) => change::restore(&at).await,
        // Done without a daemon, above.
        Command::Daemon { .. }
        | Command::Config(_)
        | Command::Logs { .. }
        | Command::Version
        | Command::Completion { .. }
        | Command::Lan { .. }
        | Command::Upnp { .. }
        | Command::Man => Ok(()),
    }
}

/// What every command that asks the daemon has.
struct At<'a> {
    client: &'a Client,
    /// `--network`.
    wanted: Option<&'a str>,
    printer: &'a Printer,
    paths: &'a Paths,
}

impl At<'_> {
    /// The network that is meant: the named one, or the only one.
    async fn network(&self) -> Result<String, Problem> {
        let status: Status = self.client.get("/v1/status").await?;
        let names: Vec<_> = status.networks.into_iter().map(|n| n.name).collect();
        match (self.wanted, names.as_slice()) {
            (Some(name), _) if names.iter().any(|n| n == name) => Ok(name.to_owned()),
            (Some(name), _) => Err(usage(format!("there is no network \"{name}\" here"))
                .fix("See which there are:  shadowmesh network list")),
            (None, [only]) => Ok(only.clone()),
            (None, []) => Err(Problem::failed("there is no network here yet")
                .fix("Make one:  sudo shadowmesh network create NAME --relay URL")
                .fix("or join:   sudo shadowmesh join URL")),
            (None, _) => Err(usage(format!("there are several networks here: {}", names.join(", ")))
                .fix("Say which:  --network NAME")),
        }
    }

    /// The path of that network in the API.
    async fn path(&self, rest: &str) -> Result<String, Problem> {
        Ok(format!("/v1/networks/{}{rest}", self.network().await?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_hang_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn invite_takes_a_name_or_a_verb() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["shadowmesh"], args].concat()).map(|c| c.command);
        assert!(matches!(
            parse(&["invite", "list"]),
            Ok(Command::Invite { command: Some(InviteCommand::List), .. })
        ));
        let Ok(Command::Invite { new, command: None }) = parse(&["invite", "pi", "--qr", "--expires", "2h"])
        else {
            panic!("not an invite");
        };
        assert!(new.qr && new.name.as_deref() == Some("pi") && new.expires == "2h");
        assert!(matches!(parse(&["invite"]), Ok(Command::Invite { command: None, .. })));
        assert!(parse(&["network"]).is_err() && parse(&["invite", "cancel"]).is_err());
    }
}
