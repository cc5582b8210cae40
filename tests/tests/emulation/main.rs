//! The speaker on Debian's kernel, emulated: what needs modules that the machine at hand may lack, or settings that are the machine's own.
//! That it starts there is a test as well: that kernel's verifier has taken the packet path.

mod guest;

use std::collections::BTreeMap;

use anyhow::Result;

/// kube-proxy gives every VIP to a device of every node. IPVS and the speaker have different pods here, so an answer names the one that has
/// translated. Source ranges count for neither before the speaker runs.
#[test]
fn kube_proxy_ipvs_leaves_the_vip_to_the_speaker_and_the_kernel_keeps_silent_about_it() -> Result<()> {
    let findings = guest::play("ipvs")?;
    let expected =
        |pod: &'static str, connections, outside, answers, asks, [ignore, announce]: [&'static str; 2], path| {
            let all = [
                ("reached", pod),
                ("ipvs_connections", connections),
                ("outside_the_ranges", outside),
                ("answers_arp", answers),
                ("asks_as", asks),
                ("arp_ignore", ignore),
                ("arp_announce", announce),
                ("packet_path", path),
            ];
            BTreeMap::from(all)
        };
    let without = expected("ipvs 192.0.2.5", "1", "yes", "yes", "vip", ["0", "0"], "none");
    let with = expected("ours 192.0.2.5", "0", "no", "no", "node", ["1", "2"], "prog/xdp");
    assert_eq!(findings.of("before"), without, "else there is nothing to guard against");
    // That it has ended, the scenario has waited for. (A slow client repeats its segment before the reset is there.)
    assert_eq!(findings.of("open"), [("reset", "yes")].into(), "a connection that IPVS had before");
    assert_eq!(findings.of("with"), with);
    assert_eq!(findings.of("left"), with, "a speaker that ends leaves the node as it is");
    assert_eq!(findings.of("after"), without, "after uninstall");
    Ok(())
}

#[test]
fn a_full_conntrack_table_answers_no_new_client_and_is_reported_until_there_is_room() -> Result<()> {
    let findings = guest::play("conntrack_full")?;
    assert_eq!(findings.of("held"), [("entries", "9"), ("dropped", "00000000"), ("notes", "")].into());
    let near = [("notes", "conntrack_nearly_full"), ("dropped", "00000000")];
    assert_eq!(findings.of("near"), near.into(), "an alarm while nothing is lost");
    // The client has repeated its SYN: that it was dropped twice, and that the speaker has counted it, the scenario has waited for.
    let full = [
        ("answer", ""),
        ("connections", "alive"),
        ("entries", "9"),
        ("limit", "9"),
        ("notes", "conntrack_full conntrack_nearly_full"),
    ];
    assert_eq!(findings.of("full"), full.into());
    assert_eq!(findings.of("room"), [("answer", "ours 192.0.2.5")].into(), "the same connection attempt");
    Ok(())
}
