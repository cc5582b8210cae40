#!/bin/bash
# The first process of a lab node: gives the node mounts of its own, starts its daemons, adopts orphans.
# It runs in new mount, PID and UTS namespaces and in the node's network namespace, so that ending this one process is
# a power cut: every daemon, shim, pod and mount of the node goes with it.
# LAB: folder of the lab · NODE: folder of this node · NAME: its name · BIN: folder of the Kubernetes binaries
set -u
fail() { echo "boot of $NAME: $*" >&2; exit 1; }
export PATH=$BIN:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
logs=$LAB/logs
hostname "$NAME"

# Shared within the node (kubelet's volumes must be seen by containerd), nothing to or from the machine.
mount --make-rprivate / && mount --make-rshared / || fail "mount propagation"
# The names of all labs' network namespaces are mounts: a copy here would keep them alive.
umount --recursive --lazy /run/netns 2>/dev/null
mount -t proc proc /proc || fail "proc"

# A boot empties /run; /var/lib survives.
rm -rf "$NODE/run"
mkdir -p "$NODE/run/lock" "$NODE$LAB" "$NODE/var/lib" "$NODE/var/log" "$NODE/cgroup"
mount --bind "$LAB" "$NODE$LAB" && mount --rbind "$NODE/run" /run || fail "/run"
mount --bind "$NODE/var/lib" /var/lib && mount --bind "$NODE/var/log" /var/log || fail "/var"

# The devices in /sys are those of the namespace that mounts it.
mount --rbind /sys/fs/cgroup "$NODE/cgroup" && mount -t sysfs sysfs /sys || fail "/sys"
mount --move "$NODE/cgroup" /sys/fs/cgroup 2>/dev/null || mount --rbind "$NODE/cgroup" /sys/fs/cgroup || fail "cgroup"
mount -t bpf bpf /sys/fs/bpf || fail "bpffs"

mkdir -p /run/netns /var/lib/kubelet/manifests
cd /

# As a service manager would: a daemon that ends is started again.
keep() {
    local log=$logs/$NAME-$1.log
    while :; do
        "$@" >>"$log" 2>&1
        echo "=== $1 ended with $?" >>"$log"
        sleep 0.2
    done
}

keep kube-proxy --config="$NODE/kube-proxy.yaml" &
keep containerd --config "$NODE/containerd.toml" &

{
    socket=/run/containerd/containerd.sock
    until ctr --address $socket version; do sleep 0.05; done
    for image in "$LAB"/images/*.tar; do
        # Images survive a power cut: each is imported once, until it changes.
        stamp=/var/lib/imported-$(basename "$image")
        [[ $stamp -nt $image ]] && continue
        ctr --address $socket --namespace k8s.io images import --no-unpack --local "$image" && touch "$stamp"
    done
} >>"$logs/$NAME-boot.log" 2>&1

keep kubelet --config="$NODE/kubelet.yaml" --kubeconfig="$NODE/kubelet.kubeconfig" --hostname-override="$NAME" \
    --node-ip="$ADDRESS" --root-dir=/var/lib/kubelet --cert-dir=/var/lib/kubelet/pki &

# bash reaps whatever is handed to it while it waits.
while :; do wait; sleep 1; done
