//! `sheave-lab`: a real Kubernetes cluster on this machine, and what can go wrong with it.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use sheave_tests::lab::{self, ClientKind, Fault, Lab, LabConfig, ProxyMode, process};

#[derive(Parser)]
#[command(name = "sheave-lab", about, version)]
struct Arguments {
    /// Which lab: several can run at the same time
    #[arg(long, global = true, default_value = "lab")]
    name: String,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Starts a lab and leaves it up
    Up {
        #[arg(long, default_value_t = 3)]
        nodes: u8,
        #[arg(long, value_enum, default_value = "nftables")]
        proxy_mode: ProxyMode,
        #[arg(long, default_value_t = 1)]
        api_servers: u8,
        /// Only the cluster, without Sheave
        #[arg(long)]
        no_sheave: bool,
    },
    /// Removes every trace of a lab, also of one that crashed
    Down,
    /// What runs
    Status,
    /// Runs a command as the client on the nodes' segment, or behind the router
    Client {
        #[arg(long)]
        router: bool,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Runs a command on a node: in its network, with its mounts and processes
    Node {
        node: String,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// kubectl as the administrator
    #[command(disable_help_flag = true)]
    Kubectl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Packs what was built into images (`make images`) and prints their sizes; with a lab up also imports them
    Images,
    /// Installs Sheave from manifests/overlays/lab, or what has changed of it
    Install,
    /// Waits until a node that got power again is back, with its pods
    WaitBack { node: String },
    /// Breaks something, or repairs it
    #[command(subcommand)]
    Fault(Fault),
}

fn main() -> ExitCode {
    // `sheave-lab status | head` ends quietly.
    // SAFETY: no other thread runs yet, and this sets the default action.
    let _ =
        unsafe { nix::sys::signal::signal(nix::sys::signal::Signal::SIGPIPE, nix::sys::signal::SigHandler::SigDfl) };
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("sheave-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    let name = arguments.name;
    match arguments.action {
        Action::Up { nodes, proxy_mode, api_servers, no_sheave } => {
            if Lab::attach(&name).is_err() {
                lab::down_on_interrupt(&name)?;
            }
            let sheave = !no_sheave;
            let lab = Lab::up(LabConfig { name, nodes, proxy_mode, api_servers, sheave, ..LabConfig::default() })?;
            print_next(&lab);
        }
        Action::Down => Lab::remove(&name)?,
        Action::Status => status(&Lab::attach(&name)?)?,
        Action::Client { router, command } => {
            let kind = if router { ClientKind::BehindRouter } else { ClientKind::Segment };
            let program = Lab::attach(&name)?.client_command(kind, &command[0])?;
            return wait(program, &command);
        }
        Action::Node { node, command } => {
            let program = Lab::attach(&name)?.node_command(&node, &command[0])?;
            return wait(program, &command);
        }
        Action::Kubectl { arguments } => {
            let status = Lab::attach(&name)?.kubectl_command().args(arguments).status().context("start kubectl")?;
            return Ok(exit_code(status));
        }
        Action::Images => images(&name)?,
        Action::Install => Lab::attach(&name)?.install_sheave()?,
        Action::WaitBack { node } => Lab::attach(&name)?.wait_back(&node)?,
        Action::Fault(fault) => Lab::attach(&name)?.fault(fault)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn wait(mut program: Command, command: &[String]) -> Result<ExitCode> {
    let status = program.args(&command[1..]).status().with_context(|| format!("start {}", command[0]))?;
    Ok(exit_code(status))
}

fn exit_code(status: std::process::ExitStatus) -> ExitCode {
    ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

fn images(name: &str) -> Result<()> {
    let images = match Lab::attach(name) {
        Ok(lab) => lab.import_images()?,
        Err(_) => lab::image::pack_all(&lab::plan::kubernetes_bin().join("pause"))?,
    };
    for image in images {
        println!("{:<24} {:>6.1} MB  {}", image.name, megabytes(image.bytes), image.tar.display());
    }
    Ok(())
}

fn status(lab: &Lab) -> Result<()> {
    let state = lab.state()?;
    println!("lab {}: kube-proxy {}, KUBECONFIG {}", lab.name(), state.plan.proxy_mode, lab.kubeconfig().display());
    for (name, process) in &state.processes {
        println!("  {name:<26} {:>8}  {}", process.pid, if process.alive() { "runs" } else { "ended" });
    }
    for name in state.plan.node_names() {
        match state.nodes.get(&name) {
            None => println!("  {name:<26} {:>8}  no power", "-"),
            Some(node) => {
                let speaker =
                    lab.speaker(&name)?.map_or("no speaker".to_owned(), |found| format!("speaker {}", found.pid));
                let inode = lab::netns::inode(&state.plan.netns(&name))?;
                println!("  {name:<26} {:>8}  {} processes, {speaker}", node.init.pid, process::in_netns(inode).len());
            }
        }
    }
    Ok(())
}

fn print_next(lab: &Lab) {
    let program = std::env::args().next().unwrap_or_else(|| "sheave-lab".to_owned());
    let lab_command = match lab.name() {
        "lab" => program,
        other => format!("{program} --name {other}"),
    };
    println!(
        "\nThe lab is up. What to type next:\n\
         \x20 export KUBECONFIG={}\n\
         \x20 {lab_command} kubectl get nodes -o wide\n\
         \x20 {lab_command} client -- busybox ping -c1 192.168.77.11          # as the client on the segment\n\
         \x20 {lab_command} client --router -- busybox ping -c1 192.168.77.11 # as the client behind the router\n\
         \x20 {lab_command} node node1 -- nft list ruleset            # on a node\n\
         \x20 {lab_command} fault power-off node1                     # and power-on; cut, heal; `fault --help` lists all\n\
         \x20 {lab_command} down",
        lab.kubeconfig().display()
    );
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
