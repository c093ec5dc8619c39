//! The command line.

use crate::{init, run};
use clap::{Args, Parser, Subcommand};
use shadowmesh_control::Problem;
use std::net::SocketAddr;
use std::path::PathBuf;

/// A relay for ShadowMesh networks: it forwards what it cannot read, for members it does not know.
#[derive(Parser)]
#[command(name = "shadowmesh-relay", version, disable_help_subcommand = true)]
pub struct Arguments {
    /// One JSON object in place of text
    #[arg(long, global = true)]
    pub json: bool,
    /// Where the identity and the state are [default: /var/lib/shadowmesh-relay, or relay in $SHADOWMESH_DIR]
    #[arg(long, global = true, value_name = "DIR")]
    pub state: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes a relay: its identity, and a URL for whoever creates a network with it
    Init(Init),
    /// Prints the relay's URL, without a token
    Url,
    /// Makes tokens: each registers one network
    Token {
        #[command(subcommand)]
        command: Token,
    },
    /// Runs the relay in the foreground; the service does this
    Run(Run),
    /// Shows or checks the configuration
    Config {
        #[command(subcommand)]
        command: Config,
    },
}

#[derive(Subcommand)]
enum Token {
    /// Prints URLs with a fresh token each; a running relay takes them at once
    New {
        /// How many
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
        count: u16,
    },
}

#[derive(Subcommand)]
enum Config {
    /// Prints the whole configuration; defaults are marked
    Show(File),
    /// Says whether a file is in order
    Check(File),
}

#[derive(Args)]
pub struct File {
    /// The file [default: /etc/shadowmesh/relay.yaml, or relay.yaml in $SHADOWMESH_DIR]
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
}

#[derive(Args)]
pub struct Init {
    /// Name or address that clients reach the relay at, and its port if it is not 443
    #[arg(long, value_name = "HOST[:PORT]", value_parser = init::public)]
    pub public: shadowmesh_identity::HostPort,
    /// Address to listen on, if it is not every address with the public port
    #[arg(long, value_name = "udp://ADDRESS:PORT", value_parser = crate::config::endpoint)]
    pub listen: Vec<SocketAddr>,
    /// Tokens to make, a URL each
    #[arg(long, visible_alias = "token", value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(0..=1000))]
    pub tokens: u16,
}

#[derive(Args)]
pub struct Run {
    /// Address to listen on, in place of the configured ones
    #[arg(long, value_name = "udp://ADDRESS:PORT", value_parser = crate::config::endpoint)]
    pub listen: Vec<SocketAddr>,
    /// A second port, by which clients learn what their NAT does (STUN): a number, off, or auto for the one after the first
    #[arg(long, value_name = "PORT", value_parser = crate::config::stun_port)]
    pub stun_port: Option<crate::config::StunPort>,
    /// Address to listen on over TCP, for clients whose UDP is blocked; off: nowhere [default: as for UDP]
    #[arg(long, value_name = "tcp://ADDRESS:PORT|off", value_parser = crate::config::tcp_endpoint)]
    pub tcp: Vec<crate::config::TcpEndpoint>,
    /// Address for /metrics, /health, /ready and /live; none by default
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub http: Option<SocketAddr>,
    /// Configuration file [default: /etc/shadowmesh/relay.yaml, or relay.yaml in $SHADOWMESH_DIR]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// User to become when started by root [default: shadowmesh]
    #[arg(long, value_name = "NAME", conflicts_with = "allow_root")]
    pub user: Option<String>,
    /// Stay root
    #[arg(long)]
    pub allow_root: bool,
    /// Allow core dumps and debuggers: they see the keys of sessions
    #[arg(long)]
    pub allow_core: bool,
}

/// The command line as it was given; ends the process when it is wrong (2).
pub fn parse() -> Arguments {
    Arguments::parse()
}

/// Does what is asked.
pub fn dispatch(args: Arguments) -> Result<(), Problem> {
    let paths = crate::paths::Paths::new(args.state);
    match args.command {
        Command::Init(a) => init::init(&paths, &a, args.json),
        Command::Url => init::url(&paths, args.json),
        Command::Token { command: Token::New { count } } => init::tokens(&paths, count, args.json),
        Command::Run(a) => run::run(&paths, &a, args.json),
        Command::Config { command: Config::Show(f) } => crate::config::show(&paths, f.file, args.json),
        Command::Config { command: Config::Check(f) } => crate::config::check(&paths, f.file, args.json),
    }
}
