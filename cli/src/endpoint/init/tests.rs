use clap::Parser;

use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

fn parse(line: &str) -> Result<Args, String> {
    let words = ["init"].into_iter().chain(line.split(' ').filter(|word| !word.is_empty()));
    Line::try_parse_from(words).map(|line| line.args).map_err(|error| error.to_string())
}

fn refused(line: &str) -> String {
    parse(line).err().unwrap_or_else(|| panic!("{line} is accepted"))
}

const COMPLETE: &str = "--preset k3s --vip 192.0.2.100 --members a=192.0.2.11,b=192.0.2.12,192.0.2.13";

#[test]
fn a_line_is_a_plan() {
    let args = parse(&format!("{COMPLETE} --listen 8443:6443,7443 --without-speaker b --timing steady")).unwrap();
    let plan = args.plan();
    assert_eq!((plan.preset, plan.run, plan.profile), (Preset::K3s, Run::Systemd, Profile::Steady));
    let members: Vec<_> = plan.members.iter().map(|member| (member.name.as_str(), member.speaker)).collect();
    assert_eq!(members, [("a", true), ("b", false), ("192.0.2.13", true)]);
    assert_eq!(plan.also, [(8443, 6443), (7443, 7443)]);
    for preset in Preset::ALL {
        let line = COMPLETE.replace("k3s", &preset.flag());
        assert_eq!(parse(&line).unwrap().run(), preset.distribution().run, "{line}");
    }
}

#[test]
fn a_wrong_line_is_refused_with_what_is_allowed() {
    let with = |from: &str, to: &str| refused(&COMPLETE.replace(from, to));
    let cases = [
        (with("k3s", "talos"), "[possible values: kubeadm, k3s, rke2, k0s, microk8s]"),
        (with("--vip 192.0.2.100", "--vip 2001:db8::1"), "IPv6 is not served yet"),
        (with("--vip 192.0.2.100", "--vip vip.example"), "an IPv4 address such as 192.0.2.100"),
        (with("--vip 192.0.2.100", ""), "--vip"),
        (with("b=192.0.2.12", "b=2001:db8::2"), "IPv6 is not served yet"),
        (refused(&format!("{COMPLETE} --listen 0:6443")), "each 1 to 65535"),
        (refused(&format!("{COMPLETE} --run docker")), "[possible values: static-pod, systemd]"),
        (refused(&format!("{COMPLETE} --check --replace")), "cannot be used with"),
    ];
    for (message, expected) in cases {
        assert!(message.contains(expected), "{message}\nexpected: {expected}");
    }
    let args = parse(&format!("{COMPLETE} --without-speaker d")).unwrap();
    let refusals = args.unknown_members().unwrap_err().to_string();
    assert_eq!(refusals, "--without-speaker: d is refused: names of --members: a, b, 192.0.2.13");
    assert!(parse("--preset k0s --check").is_ok());
}
