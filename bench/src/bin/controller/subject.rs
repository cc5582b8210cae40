//! What is measured: Sheave's controller and MetalLB's, each installed by its own manifests and started as its pod starts it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;
use sheave_tests::lab::plan::repository;
use sheave_tests::lab::{Lab, image, manifests};

use super::program::{self, Order, Program};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Subject {
    Sheave,
    #[value(name = "metallb")]
    MetalLb,
}

/// How the installed controller is started.
pub struct Installed {
    order: Order,
    folder: PathBuf,
    name: &'static str,
    starts: std::cell::Cell<u32>,
}

impl Installed {
    pub fn start(&self, lab: &Lab) -> Result<Program> {
        self.starts.set(self.starts.get() + 1);
        Program::start(lab, &self.order, &self.folder.join(format!("{}-{}.log", self.name, self.starts.get())))
    }
}

impl Subject {
    /// For the table.
    pub fn title(self) -> Result<String> {
        match self {
            Self::Sheave => Ok("Sheave".into()),
            Self::MetalLb => {
                let file = metallb("version");
                let version = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
                Ok(format!("MetalLB {}", version.trim()))
            }
        }
    }

    /// `spec.loadBalancerClass` of its Services.
    pub fn class(self) -> &'static str {
        match self {
            Self::Sheave => "sheave.dev/sheave",
            Self::MetalLb => "metallb.io/metallb",
        }
    }

    /// Annotation of the key under which Services share an address.
    pub fn sharing(self) -> &'static str {
        match self {
            Self::Sheave => "sheave.dev/allow-shared-ip",
            Self::MetalLb => "metallb.io/allow-shared-ip",
        }
    }

    /// Whether it keeps what it granted in objects of its own.
    pub fn has_ledger(self) -> bool {
        self == Self::Sheave
    }

    /// With a pool of 131,072 addresses of no network here (RFC 2544).
    pub fn install(self, lab: &Lab, folder: &Path) -> Result<Installed> {
        let (order, name) = match self {
            Self::Sheave => (sheave(lab, folder)?, "sheave"),
            Self::MetalLb => (metallb_controller(lab, folder)?, "metallb"),
        };
        Ok(Installed { order, folder: folder.to_path_buf(), name, starts: Default::default() })
    }
}

fn sheave(lab: &Lab, folder: &Path) -> Result<Order> {
    manifests::install(lab)?;
    lab.apply(&format!(
        "apiVersion: sheave.dev/v1alpha1\nkind: AddressPool\nmetadata: {{name: bench}}\nspec: {{addresses: [{POOL}]}}"
    ))?;
    let namespace = "sheave-system";
    let kubeconfig = program::account(lab, folder, namespace, "sheave-controller")?;
    let environment = vec![
        ("KUBECONFIG", kubeconfig.to_string_lossy().into_owned()),
        ("POD_NAME", "bench".into()),
        ("POD_NAMESPACE", namespace.into()),
    ];
    // Another build of it, to compare.
    let named = std::env::var_os("SHEAVE_CONTROLLER").map(PathBuf::from);
    Ok(Order {
        binary: named.unwrap_or_else(|| image::static_binary("sheave-controller")),
        arguments: vec![],
        environment,
    })
}

fn metallb_controller(lab: &Lab, folder: &Path) -> Result<Order> {
    let file = metallb("manifests.yaml");
    let all = std::fs::read_to_string(&file).with_context(|| format!("{}: bench/metallb/build.sh", file.display()))?;
    // Nothing that would run pods; without webhooks nothing checks objects.
    let left_out = ["Deployment", "DaemonSet", "ValidatingWebhookConfiguration"].map(|kind| format!("kind: {kind}"));
    let stays = |document: &&str| !document.lines().any(|line| left_out.iter().any(|kind| line == kind));
    let objects: Vec<&str> = all.split("\n---\n").filter(stays).collect();
    lab.apply(&objects.join("\n---\n"))?;
    for plural in ["ipaddresspools", "l2advertisements"] {
        lab.kubectl(&["wait", "--for=condition=Established", &format!("crd/{plural}.metallb.io"), "--timeout=10s"])?;
    }
    let namespace = "metallb-system";
    lab.apply(&format!(
        "apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {{name: bench, namespace: {namespace}}}\n\
         spec: {{addresses: [{POOL}]}}\n---\n\
         apiVersion: metallb.io/v1beta1\nkind: L2Advertisement\nmetadata: {{name: bench, namespace: {namespace}}}"
    ))?;
    let kubeconfig = program::account(lab, folder, namespace, "controller")?;
    let environment =
        vec![("KUBECONFIG", kubeconfig.to_string_lossy().into_owned()), ("METALLB_NAMESPACE", namespace.into())];
    // As its manifest has it, but for its webhooks.
    let class = format!("--lb-class={}", Subject::MetalLb.class());
    let arguments = vec!["--port=7472".into(), "--log-level=info".into(), "--webhook-mode=disabled".into(), class];
    Ok(Order { binary: metallb("controller"), arguments, environment })
}

fn metallb(file: &str) -> PathBuf {
    repository().join("target/metallb").join(file)
}

const POOL: &str = "198.18.0.0-198.19.255.255";
