use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use k8s_openapi::api::core::v1::Pod;
use serde_yaml::Value;

use super::*;
use crate::Credential;

fn keys() -> Keys {
    Keys { current: [7; 32], previous: None }
}

fn member(name: &str, last: u8) -> Member {
    Member { name: name.into(), address: Ipv4Addr::new(192, 0, 2, last), speaker: true }
}

fn plan(preset: Preset, run: Run) -> Plan {
    Plan {
        preset,
        run,
        addresses: vec![Ipv4Addr::new(192, 0, 2, 100)],
        interface: None,
        members: vec![member("b", 12), member("a", 11), member("c", 13)],
        also: Vec::new(),
        profile: Profile::Fast,
        with_join: false,
        image: (run == Run::StaticPod).then(|| "sheave-speaker:1".into()),
    }
}

/// With static pods where there are any, else with systemd.
fn plans() -> impl Iterator<Item = Plan> {
    let run = |preset: Preset| preset.distribution().manifests.map_or(Run::Systemd, |_| Run::StaticPod);
    Preset::ALL.into_iter().map(move |preset| plan(preset, run(preset)))
}

fn pods() -> Vec<String> {
    let pods = plans().filter(|plan| plan.run == Run::StaticPod);
    pods.map(|plan| plan.files(&keys()).pop().unwrap().text).collect()
}

#[test]
fn each_file_is_accepted_and_has_the_ports_of_its_distribution() {
    let expected: BTreeMap<&str, &[u16]> = BTreeMap::from([
        ("kubeadm", &[6443][..]),
        ("k3s", &[6443]),
        ("RKE2", &[6443, 9345]),
        ("k0s", &[6443, 8132, 9443]),
        ("MicroK8s", &[16443]),
    ]);
    for plan in plans() {
        let name = plan.preset.distribution().name;
        let endpoint = plan.endpoint(&keys()).unwrap_or_else(|refusals| panic!("{name}: {refusals}"));
        let ports: Vec<u16> = endpoint.ports.iter().map(|port| port.listen).collect();
        assert_eq!(ports, expected[name], "{name}");
        assert!(endpoint.ports.iter().all(|port| port.listen == port.target), "{name}");
        let https = endpoint.ports.iter().filter(|port| port.check == Check::Https).count();
        assert_eq!(https, 1, "{name}: the API alone has /readyz");
        assert_eq!(endpoint.members.len(), 3);
        assert!(endpoint.keys == keys());
        assert!(matches!(endpoint.health.credential, Some(Credential::Certificate { .. })), "{name}");
        assert!(endpoint.health.ca_file.is_some_and(|path| path.is_absolute()), "{name}");
    }
}

#[test]
fn what_is_asked_for_is_in_the_file() {
    let mut plan = plan(Preset::MicroK8s, Run::Systemd);
    plan.with_join = true;
    plan.also = vec![(6443, 16443), (26000, 25000)];
    plan.interface = Some("on".into());
    plan.profile = Profile::Steady;
    plan.addresses.push(Ipv4Addr::new(192, 0, 2, 101));
    // Each of these would be something else to YAML.
    plan.members = vec![member("null", 11), member("10", 12), Member { speaker: false, ..member("0x1", 13) }];
    let rotated = Keys { previous: Some([8; 32]), ..keys() };
    let endpoint = plan.endpoint(&rotated).unwrap_or_else(|refusals| panic!("{refusals}"));
    let ports: Vec<_> = endpoint.ports.iter().map(|port| (port.listen, port.target, port.check)).collect();
    let expected = [
        (6443, 16443, Check::Https),
        (16443, 16443, Check::Https),
        (25000, 25000, Check::Tls),
        (26000, 25000, Check::Tls),
    ];
    assert_eq!(ports, expected);
    assert_eq!(endpoint.interface.as_deref(), Some("on"));
    assert_eq!(endpoint.timing.interval.as_millis(), 200);
    assert_eq!(endpoint.addresses.len(), 2);
    let members: Vec<_> = endpoint.members.iter().map(|member| (member.name.as_str(), member.speaker)).collect();
    assert_eq!(members, [("0x1", false), ("10", true), ("null", true)]);
    assert!(endpoint.keys == rotated);
}

#[test]
fn flags_that_fit_no_distribution_are_refused_by_name() {
    let refused = |change: fn(&mut Plan), preset, run| {
        let mut plan = plan(preset, run);
        change(&mut plan);
        plan.endpoint(&keys()).expect_err("accepted").0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    let cases = [
        (
            refused(|_| {}, Preset::K0s, Run::StaticPod),
            "--run: static-pod is refused: systemd: k0s starts no static pods",
        ),
        (refused(|_| {}, Preset::MicroK8s, Run::StaticPod), "--run: static-pod is refused: systemd: MicroK8s"),
        (
            refused(|plan| plan.with_join = true, Preset::K0s, Run::Systemd),
            "--with-join: given is refused: for microk8s",
        ),
        (refused(|plan| plan.image = None, Preset::Kubeadm, Run::StaticPod), "--image is missing: the reference"),
        (
            refused(|plan| plan.image = Some("a b".into()), Preset::Kubeadm, Run::StaticPod),
            "--image: a b is refused: the reference",
        ),
        (
            refused(|plan| plan.image = Some("a:1".into()), Preset::K3s, Run::Systemd),
            "--image: a:1 is refused: for static pods alone",
        ),
        // And what is wrong with the file.
        (
            refused(|plan| plan.addresses = vec![Ipv4Addr::new(192, 0, 2, 11)], Preset::K3s, Run::Systemd),
            "addresses: 192.0.2.11 is refused: it is the address of member a",
        ),
        (
            refused(|plan| plan.also = vec![(6443, 6443)], Preset::K3s, Run::Systemd),
            "ports: listen 6443 twice is refused",
        ),
        (refused(|plan| plan.members.clear(), Preset::K3s, Run::Systemd), "members is missing: 1 to 32 members"),
    ];
    for (message, expected) in cases {
        assert!(message.contains(expected), "{message}\nexpected: {expected}");
    }
}

/// What the type does not know would be lost.
#[test]
fn every_field_of_the_pod_is_one_of_kubernetes() {
    let pods = pods();
    assert_eq!(pods.len(), 3);
    for text in pods {
        let written: Value = serde_yaml::from_str(&text).unwrap();
        let pod: Pod = serde_yaml::from_str(&text).unwrap();
        assert_eq!(serde_yaml::to_value(&pod).unwrap(), written);
    }
}

#[test]
fn the_pod_needs_nothing_of_an_api_server() {
    for text in pods() {
        let pod: Pod = serde_yaml::from_str(&text).unwrap();
        let spec = pod.spec.unwrap();
        assert!(spec.service_account_name.is_none() && spec.service_account.is_none());
        assert!(spec.image_pull_secrets.is_none() && spec.init_containers.is_none());
        for volume in spec.volumes.as_ref().unwrap() {
            let sources = serde_yaml::to_value(volume).unwrap();
            let sources: Vec<&str> = sources.as_mapping().unwrap().keys().filter_map(Value::as_str).collect();
            assert_eq!(sources, ["hostPath", "name"], "files of the node alone");
        }
        let [container] = &spec.containers[..] else { panic!("one container") };
        assert!(container.env.is_none() && container.env_from.is_none());
        assert_eq!(container.image.as_deref(), Some("docker.io/library/sheave-speaker:1"));
    }
}

#[test]
fn the_pod_has_what_the_speaker_needs_and_no_more() {
    for plan in plans().filter(|plan| plan.run == Run::StaticPod) {
        let text = plan.files(&keys()).pop().unwrap().text;
        let spec = serde_yaml::from_str::<Pod>(&text).unwrap().spec.unwrap();
        assert_eq!(spec.host_network, Some(true));
        assert!(spec.host_pid.is_none() && spec.host_ipc.is_none());
        let container = &spec.containers[0];
        let security = container.security_context.as_ref().unwrap();
        assert_eq!((security.privileged, security.allow_privilege_escalation), (Some(false), Some(false)));
        assert_eq!(security.read_only_root_filesystem, Some(true));
        let capabilities = security.capabilities.as_ref().unwrap();
        assert_eq!(capabilities.drop, Some(vec!["ALL".to_string()]));
        let five = ["BPF", "NET_ADMIN", "NET_RAW", "PERFMON", "SYS_NICE"].map(String::from);
        assert_eq!(capabilities.add, Some(five.to_vec()));
        // Every path that the arguments and the file name is mounted; credentials and the key only to be read.
        let mounts = container.volume_mounts.as_ref().unwrap();
        let mounted = |path: &str| {
            let found = mounts.iter().find(|mount| path.starts_with(&format!("{}/", mount.mount_path)));
            found.unwrap_or_else(|| panic!("{path} is on no mount"))
        };
        let distribution = plan.preset.distribution();
        for path in [FILE, distribution.ca, distribution.client.0, distribution.client.1] {
            assert_eq!(mounted(path).read_only, Some(true), "{path}");
        }
        for path in ["/sys/fs/bpf/sheave", "/var/lib/sheave-endpoint/epoch", "/run/sheave/endpoint.sock"] {
            assert_eq!(mounted(path).read_only, None, "{path}");
        }
        let volumes: BTreeSet<_> = spec.volumes.unwrap().into_iter().map(|volume| volume.name).collect();
        assert_eq!(volumes, mounts.iter().map(|mount| mount.name.clone()).collect(), "each volume is mounted");
        assert_eq!(mounts.len(), volumes.len());
    }
}

/// By systemd itself. The speaker is at its place on a member alone.
#[test]
fn the_unit_is_accepted_by_systemd() {
    let folder = std::env::temp_dir().join(format!("sheave-unit-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let verify = |text: String| {
        let path = folder.join("sheave-endpoint.service");
        std::fs::write(&path, text).unwrap();
        let output =
            Command::new("systemd-analyze").args(["verify", "--man=no", "--recursive-errors=no"]).arg(&path).output();
        let output = output.expect("systemd-analyze (Debian package systemd)");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let speaker = format!("{LIBRARY}/sheave-speaker");
    assert!(UNIT.contains(&format!("ExecStart={speaker} endpoint --config {FILE} --nft {LIBRARY}/nft\n")));
    let unit = UNIT.replace(&speaker, "/bin/true");
    let accepted = verify(unit.clone());
    let refused = verify(unit.replace("Restart=always", "Restart=allways"));
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(accepted.0 && accepted.1.is_empty(), "{}", accepted.1);
    assert!(!refused.0 && refused.1.contains("restart specifier"), "it looks at the values: {}", refused.1);
}

#[test]
fn unit_and_pod_have_the_same_capabilities() {
    let line = UNIT.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
    let of_unit: BTreeSet<String> = line.split(' ').map(|name| name.trim_start_matches("CAP_").to_owned()).collect();
    let spec = serde_yaml::from_str::<Pod>(&pods()[0]).unwrap().spec.unwrap();
    let of_pod = spec.containers[0].security_context.clone().unwrap().capabilities.unwrap().add.unwrap();
    assert_eq!(of_unit, of_pod.into_iter().collect());
}

/// One of both starts the speaker, after the file is there, and the key is for root alone.
#[test]
fn the_file_is_written_before_what_starts_the_speaker() {
    let paths = |plan: &Plan| plan.files(&keys()).into_iter().map(|file| (file.path, file.mode)).collect::<Vec<_>>();
    let pod = plan(Preset::Rke2, Run::StaticPod);
    let manifest = "/var/lib/rancher/rke2/agent/pod-manifests/sheave-endpoint.yaml";
    assert_eq!(paths(&pod), [(FILE.into(), 0o600), (manifest.into(), 0o600)]);
    assert_eq!(pod.other_start().as_deref(), Some(UNIT_PATH));
    let unit = plan(Preset::Rke2, Run::Systemd);
    assert_eq!(paths(&unit), [(FILE.into(), 0o600), (UNIT_PATH.into(), 0o644)]);
    assert_eq!(unit.other_start().as_deref(), Some(manifest));
    assert_eq!(plan(Preset::K0s, Run::Systemd).other_start(), None);
}

/// The snippets are YAML that says what the distribution's documents say.
#[test]
fn snippets_have_the_address_where_the_distribution_looks() {
    let snippet = |preset: Preset| {
        let mut plan = plan(preset, Run::Systemd);
        plan.addresses.push(Ipv4Addr::new(192, 0, 2, 101));
        plan.snippet()
    };
    let yaml = |text: &str| serde_yaml::from_str::<Value>(text).unwrap();
    let both = serde_yaml::from_str::<Value>("[192.0.2.100, 192.0.2.101]").unwrap();
    let kubeadm = yaml(&snippet(Preset::Kubeadm));
    assert_eq!(kubeadm["controlPlaneEndpoint"], "192.0.2.100:6443");
    assert_eq!(kubeadm["apiServer"]["certSANs"], both);
    let delay = serde_yaml::from_str::<Value>("[{name: shutdown-delay-duration, value: 3s}]").unwrap();
    assert_eq!(kubeadm["apiServer"]["extraArgs"], delay);
    for (preset, port) in [(Preset::K3s, 6443), (Preset::Rke2, 9345)] {
        let text = snippet(preset);
        let (first, others) = text.split_once("\n\n").unwrap();
        assert!(yaml(first).get("server").is_none(), "the first has nothing to join");
        assert_eq!(yaml(first)["tls-san"], both);
        assert_eq!(yaml(others)["server"], format!("https://192.0.2.100:{port}").as_str());
        assert_eq!(yaml(others)["tls-san"], both);
        // In the order given, not by name.
        assert!(text.contains("on b, the first server"));
    }
    let k0s = yaml(&snippet(Preset::K0s));
    assert_eq!((&k0s["spec"]["api"]["externalAddress"], &k0s["spec"]["api"]["sans"]), (&"192.0.2.100".into(), &both));
    assert_eq!(k0s["spec"]["api"]["extraArgs"]["shutdown-delay-duration"], "3s");
    let microk8s = snippet(Preset::MicroK8s);
    assert!(microk8s.contains("\nIP.100 = 192.0.2.100\nIP.101 = 192.0.2.101\n"));
    assert!(!microk8s.contains("25000"));
}

#[test]
fn a_reference_is_completed_as_containerd_does() {
    let cases = [
        ("sheave-speaker", Some("docker.io/library/sheave-speaker:latest")),
        ("sheave-speaker:1", Some("docker.io/library/sheave-speaker:1")),
        ("sheave/speaker:1", Some("docker.io/sheave/speaker:1")),
        ("localhost/speaker:1", Some("localhost/speaker:1")),
        ("registry.example:5000/speaker", Some("registry.example:5000/speaker:latest")),
        ("registry.example/speaker@sha256:aa", Some("registry.example/speaker@sha256:aa")),
        ("", None),
        ("/speaker", None),
        ("speaker:", None),
        ("speaker:1\nimage: other", None),
    ];
    for (image, expected) in cases {
        assert_eq!(reference(image).as_deref(), expected, "{image:?}");
    }
}
