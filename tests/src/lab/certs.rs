//! What the parts of the cluster know each other by: a certificate authority, a server certificate, tokens, kubeconfigs.

use std::fs;
use std::io::Read;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::ha::installed::{CLIENT_CERTIFICATE, CLIENT_KEY};
use super::netns::run;
use super::plan::{API_SERVICE, Plan};

/// The folder `pki` of a lab.
pub struct Pki(PathBuf);

impl Pki {
    pub fn of(plan: &Plan) -> Self {
        Self(plan.dir().join("pki"))
    }

    pub fn file(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }

    /// The certificate (`crt`) or key of the API server in a namespace.
    pub fn server(&self, role: &str, what: &str) -> String {
        self.file(&format!("server-{role}.{what}"))
    }

    /// Elliptic keys: RSA would cost a second here.
    pub fn create(plan: &Plan) -> Result<Self> {
        let pki = Self::of(plan);
        fs::create_dir_all(&pki.0)?;
        let authority = ["-keyout", &pki.file("ca.key"), "-out", &pki.file("ca.crt"), "-subj", "/CN=sheave-lab"];
        run("openssl", &[&NEW_KEY[..], &authority].concat())?;
        for (role, _) in plan.control_plane() {
            pki.issue_server(plan, &role, "")?;
        }
        if plan.endpoint.is_some() {
            pki.issue_client("")?;
        }

        let key = pki.file("accounts.key");
        run("openssl", &["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", &key])?;
        run("openssl", &["ec", "-in", &key, "-pubout", "-out", &pki.file("accounts.pub")])?;

        let mut tokens = String::new();
        for user in users(plan) {
            tokens += &format!("{},{},{},{}\n", random()?, user.name, user.name, user.group);
        }
        fs::write(pki.file("tokens.csv"), tokens)?;
        Ok(pki)
    }

    /// Certificate and key of an API server, in files whose names end with a suffix. Every server has its own: a client sees by it which
    /// of them it has reached.
    pub fn issue_server(&self, plan: &Plan, role: &str, suffix: &str) -> Result<()> {
        let mut names = format!(
            "subjectAltName=DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,\
             DNS:kubernetes.default.svc.cluster.local,DNS:localhost,IP:127.0.0.1,IP:{API_SERVICE}"
        );
        let endpoint = plan.endpoint.as_ref().map(|endpoint| endpoint.address);
        for address in plan.control_plane().into_iter().map(|(_, address)| address).chain(endpoint) {
            names += &format!(",IP:{address}");
        }
        let files = [self.server(role, "crt") + suffix, self.server(role, "key") + suffix];
        self.issue(&files, &["-subj", "/CN=kube-apiserver", "-addext", &names])
    }

    /// The client certificate of the checks.
    pub fn issue_client(&self, suffix: &str) -> Result<()> {
        let files = [CLIENT_CERTIFICATE, CLIENT_KEY].map(|name| self.file(name) + suffix);
        self.issue(&files, &["-subj", "/CN=system:kube-proxy"])
    }

    fn issue(&self, [certificate, key]: &[String; 2], subject: &[&str]) -> Result<()> {
        let authority = [self.file("ca.crt"), self.file("ca.key")];
        let signed = ["-CA", &authority[0], "-CAkey", &authority[1], "-addext", "basicConstraints=critical,CA:FALSE"];
        run("openssl", &[&NEW_KEY[..], &["-keyout", key, "-out", certificate], &signed, subject].concat()).map(drop)
    }

    /// Of a user of the token file.
    pub fn token(&self, user: &str) -> Result<String> {
        let tokens = fs::read_to_string(self.file("tokens.csv"))?;
        let mut lines = tokens.lines().filter_map(|line| line.split_once(','));
        let found = lines.find(|(_, rest)| rest.starts_with(&format!("{user},")));
        found.map(|(token, _)| token.to_owned()).with_context(|| format!("user {user} has no token"))
    }

    /// Writes the kubeconfig of a user of the token file, for a server.
    pub fn kubeconfig(&self, path: &Path, user: &str, server: SocketAddrV4) -> Result<()> {
        let token = self.token(user)?;
        let authority = self.file("ca.crt");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: lab\n\
             clusters:\n- name: lab\n  cluster: {{server: 'https://{server}', certificate-authority: {authority}}}\n\
             users:\n- name: lab\n  user: {{token: {token}}}\n\
             contexts:\n- name: lab\n  context: {{cluster: lab, user: lab}}\n"
        );
        fs::write(path, text).with_context(|| path.display().to_string())
    }
}

pub struct User {
    name: String,
    group: String,
}

/// Names and groups as kubeadm gives them: Kubernetes' own roles bind to these.
fn users(plan: &Plan) -> Vec<User> {
    let mut users = vec![User { name: ADMIN.to_owned(), group: "system:masters".to_owned() }];
    for name in [CONTROLLER_MANAGER, SCHEDULER, PROXY] {
        users.push(User { name: name.to_owned(), group: "sheave:lab".to_owned() });
    }
    for node in plan.node_names() {
        users.push(User { name: format!("system:node:{node}"), group: "system:nodes".to_owned() });
    }
    users
}

fn random() -> Result<String> {
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

const NEW_KEY: [&str; 9] =
    ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "3650"];
pub const ADMIN: &str = "admin";
pub const CONTROLLER_MANAGER: &str = "system:kube-controller-manager";
pub const SCHEDULER: &str = "system:kube-scheduler";
pub const PROXY: &str = "system:kube-proxy";
