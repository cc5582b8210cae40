//! What programs that start labs have in common: the modes they measure, and how they end.

use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;
use sheave_tests::lab::ProxyMode;

/// `--proxy-mode`: a lab in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Modes {
    Nftables,
    Iptables,
    Both,
}

impl Modes {
    pub fn each(self) -> Vec<ProxyMode> {
        match self {
            Self::Nftables => vec![ProxyMode::Nftables],
            Self::Iptables => vec![ProxyMode::Iptables],
            Self::Both => vec![ProxyMode::Nftables, ProxyMode::Iptables],
        }
    }
}

/// 0: all is as promised; 1: it is not; 2: it could not be measured.
pub fn exit(program: &str, outcome: Result<bool>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{program}: {error:#}");
            ExitCode::from(2)
        }
    }
}
