#!/bin/bash
# The first process of a lab node: gives the node mounts of its own, starts its daemons, adopts orphans.
# It runs in new mount, PID, UTS and cgroup namespaces and in the node's network namespace, so that ending this one process is
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

# What is installed on this node alone, over the machine's own files.
for folder in etc usr/local var; do
    [[ -d $NODE/own/$folder ]] || continue
    mkdir -p "$NODE/own-work/$folder"
    mount -t overlay -o "lowerdir=/$folder,upperdir=$NODE/own/$folder,workdir=$NODE/own-work/$folder" \
        overlay "/$folder" || fail "/$folder"
done

# A boot empties /run; /var/lib survives.
rm -rf "$NODE/run"
mkdir -p "$NODE/run/lock" "$NODE$LAB" "$NODE/var/lib" "$NODE/var/log"
mount --bind "$LAB" "$NODE$LAB" && mount --rbind "$NODE/run" /run || fail "/run"
mount --bind "$NODE/var/lib" /var/lib && mount --bind "$NODE/var/log" /var/log || fail "/var"

# The devices in /sys are those of the namespace that mounts it; the control groups below /sys/fs/cgroup those of this
# node. With v2 a group with controllers may have no processes of its own: the daemons live in /system.
mount -t sysfs sysfs /sys || fail "/sys"
enter() { mkdir "$1/system" && for key in cpuset.cpus cpuset.mems; do
    [[ -e $1/$key && ! -e $1/cgroup.controllers ]] && cat "$1/$key" >"$1/system/$key"
done; echo 0 >"$1/system/cgroup.procs"; }
while IFS=: read -r id controllers _; do
    [[ $id != 0 ]] && v1=yes
done </proc/self/cgroup
if [[ ${v1-} ]]; then
    mount -t tmpfs -o size=1m cgroup /sys/fs/cgroup || fail "cgroup"
    while IFS=: read -r id controllers _; do
        if [[ $id == 0 ]]; then kind=cgroup2 name=unified options=rw
        elif [[ $controllers == name=* ]]; then kind=cgroup name=${controllers#name=} options=none,$controllers
        else kind=cgroup name=$controllers options=$controllers; fi
        mkdir "/sys/fs/cgroup/$name"
        mount -t $kind -o "$options" cgroup "/sys/fs/cgroup/$name" && enter "/sys/fs/cgroup/$name" || fail "cgroup $name"
    done < <(cat /proc/self/cgroup)
else
    mount -t cgroup2 cgroup /sys/fs/cgroup && enter /sys/fs/cgroup || fail "cgroup"
fi
mount -t bpf bpf /sys/fs/bpf || fail "bpffs"

mkdir -p /run/netns /var/lib/kubelet/manifests
# What stays away over a boot.
[[ -d $NODE/stopped ]] && cp "$NODE"/stopped/* /run/
touch /run/booted
cd /

# As a service manager would: a daemon that ends is started again, unless the file /run/stop-DAEMON says that it stays away.
keep() {
    local name=${1##*/}
    local log=$logs/$NAME-$name.log
    while :; do
        [[ -e /run/stop-$name ]] && { sleep 0.1; continue; }
        "$@" >>"$log" 2>&1
        echo "=== $name ended with $?" >>"$log"
        sleep 0.2
    done
}

keep kube-proxy --config="$NODE/kube-proxy.yaml" &
keep containerd --config "$NODE/containerd.toml" &
# What stands on this node beside that of every node: a script for each.
for service in "$NODE"/services/*; do
    [[ -x $service ]] && keep "$service" &
done

{
    socket=/run/containerd/containerd.sock
    while [[ -e /run/stop-containerd ]]; do sleep 0.1; done
    until ctr --address $socket version; do sleep 0.05; done
    for image in "$LAB"/images/*.tar; do
        # Images survive a power cut: each is imported once, until it changes.
        stamp=/var/lib/imported-$(basename "$image")
        [[ $stamp -nt $image ]] && continue
        ctr --address $socket --namespace k8s.io images import --no-unpack --local "$image" && touch "$stamp"
    done
} >>"$logs/$NAME-boot.log" 2>&1

# The address may have changed when it starts again.
echo "$ADDRESS" >/run/node-ip
kubelet() {
    command kubelet --config="$NODE/kubelet.yaml" --kubeconfig="$NODE/kubelet.kubeconfig" --hostname-override="$NAME" \
        --node-ip="$(</run/node-ip)" --root-dir=/var/lib/kubelet --cert-dir=/var/lib/kubelet/pki
}
keep kubelet &

# bash reaps whatever is handed to it while it waits.
while :; do wait; sleep 1; done
