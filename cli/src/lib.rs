//! The command line of Sheave: `sheave`, and `kubectl sheave` (kubectl finds a program called kubectl-sheave).
//!
//! Talks to the API server, and with `drain --local` and `endpoint` to the speaker of its own node; what the packet path of a node does is in that node's metrics. `finalizers remove` and `pool move` say what they would do
//! unless they are told `--yes`, and `init` what it would apply until the range is typed; `move`, `prefer` and `drain` can be undone, and tried with `--dry-run`.

mod endpoint;
mod finalizers;
mod init;
mod local;
mod placement;
mod pool;
mod status;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};

#[derive(Parser)]
#[command(name = "sheave", version, about = "Who holds which address, and which nodes may.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Path of the kubeconfig; default: KUBECONFIG, then ~/.kube/config, then in-cluster.
    #[arg(long, global = true)]
    kubeconfig: Option<std::path::PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Which node holds which address since when, and which speakers are ready.
    Status(status::Args),
    /// Look for a range of addresses that is free on the nodes' subnet, and make it the first pool.
    Init(init::Args),
    /// Hand an address over to a node, once.
    Move(placement::Move),
    /// Let a node come first when an owner of an address is chosen.
    Prefer(placement::Prefer),
    /// Let a node hand its addresses over, and own some only while no other node can.
    Drain(placement::Drain),
    /// The pools that addresses come from.
    #[command(subcommand)]
    Pool(pool::Command),
    /// The address of the API servers, on the nodes that serve it: no API server is asked.
    #[command(subcommand)]
    Endpoint(endpoint::Endpoint),
    /// The finalizers that hold Services with an address until the controller has taken it back.
    #[command(subcommand)]
    Finalizers(finalizers::Command),
}

/// Both programs.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if !matches!(cli.command, Command::Endpoint(endpoint::Endpoint::Init(_))) {
        end_without_reader();
    }
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("sheave: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// `sheave status | head` ends quietly. Not for a command that runs other programs: one that ends early is to be an error with a name.
fn end_without_reader() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: SIGPIPE gets its default action, which runs no code of this program. No socket raises it: the standard library writes to
    // them with MSG_NOSIGNAL.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
}

fn run(cli: Cli) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(async {
        if let Command::Drain(args) = &cli.command
            && let Some(change) = args.on_this_node()
        {
            return local::drain(&args.socket, change).await;
        }
        if let Command::Endpoint(command) = &cli.command {
            return endpoint::run(command).await;
        }
        let named = cli.kubeconfig.is_some();
        let client = match client(cli.kubeconfig).await {
            Ok(client) => client,
            Err(error) => match &cli.command {
                Command::Status(args) if !named && endpoint::status::is_here() => {
                    return endpoint::status::instead(args.json).await;
                }
                _ => return Err(error),
            },
        };
        match cli.command {
            Command::Endpoint(command) => endpoint::run(&command).await,
            Command::Status(args) => status::run(client, &args).await,
            Command::Init(args) => init::run(client, args).await,
            Command::Move(args) => placement::move_to(client, args).await,
            Command::Prefer(args) => placement::prefer(client, args).await,
            Command::Drain(args) => placement::drain(client, args).await,
            Command::Pool(pool::Command::Move(args)) => pool::move_to(client, args).await,
            Command::Finalizers(finalizers::Command::Remove(args)) => finalizers::remove(client, &args).await,
        }
    })
}

async fn client(kubeconfig: Option<std::path::PathBuf>) -> Result<Client> {
    let config = match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(&path).with_context(|| format!("--kubeconfig {}", path.display()))?;
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.context("kubeconfig")?
        }
        None => {
            kube::Config::infer().await.context("no kubeconfig found (--kubeconfig, KUBECONFIG, ~/.kube/config)")?
        }
    };
    Client::try_from(config).context("configure the Kubernetes client")
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write as _};
    use std::os::unix::net::UnixStream;
    use std::os::unix::process::ExitStatusExt;
    use std::process;

    use super::*;

    const CHILD: &str = "SHEAVE_PIPE_CHILD";

    /// The child is this test once more: a socket whose other end is gone is an error, standard output without a reader the end.
    #[test]
    fn a_command_ends_with_its_reader_and_not_with_a_peer() {
        if std::env::var_os(CHILD).is_some() {
            end_without_reader();
            let (mut one, other) = UnixStream::pair().expect("sockets");
            drop(other);
            eprintln!("{:?}", one.write_all(b"request").map_err(|error| error.kind()));
            (0..100_000).for_each(|line| println!("{line}"));
            return;
        }
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let mut child = process::Command::new(std::env::current_exe().expect("this program"));
        child.args(["--exact", "tests::a_command_ends_with_its_reader_and_not_with_a_peer", "--nocapture"]);
        child.env(CHILD, "1").stdout(writer).stderr(process::Stdio::piped());
        let child = child.spawn().expect("it runs");
        // The test harness prints before the test does. Who has seen the second line wants no more.
        assert!(BufReader::new(reader).lines().map_while(Result::ok).any(|line| line == "1"));
        let ended = child.wait_with_output().expect("it ends");
        assert_eq!(String::from_utf8_lossy(&ended.stderr), "Err(BrokenPipe)\n");
        assert_eq!(ended.status.signal(), Some(libc::SIGPIPE));
    }
}
