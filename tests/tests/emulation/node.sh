#!/bin/busybox sh
# Process 1 of the guest: a node in a small network, and what scenarios do with it. The kernel's command line names the scenario, a file
# beside this one.
#
#   client eth0 192.0.2.5 --- eth0 192.0.2.11 the node (the guest itself), pods0 10.99.1.1 --- eth0 10.99.1.2, 10.99.1.3 pods
#
# The speaker is the one of the images. No API server runs: it starts from the keys and the view on its disk, in which the VIP's only pod is
# 10.99.1.2. Findings go to the second serial port, one a line: NAME VALUE; the last is `end`. The console is for people.
export PATH=/usr/sbin:/usr/bin:/bin
VIP=192.0.2.200
NODE=192.0.2.11
CLIENT=192.0.2.5
NODE_MAC=02:00:00:00:00:0b
# In seconds. The guest may run many times slower than a machine does.
PATIENCE=300

# busybox runs its own applets before what is in PATH.
ip() { /usr/sbin/ip "$@"; }
client() { ip netns exec client "$@"; }

found() { echo "$*" >&3; echo "$(cut -d " " -f 1 /proc/uptime) $*"; }

fail() {
  echo "failed: $*"
  nft list ruleset | tail -n 40
  finish failed
}

finish() { # done|failed
  [ ! -e /tmp/speaker.log ] || sed 's/^/speaker: /' /tmp/speaker.log
  found end "$1"
  sync
  poweroff -f
  # It takes a moment, in which nothing else may happen.
  sleep 600
}

await() { # COMMAND...
  local end=$(($(date +%s) + PATIENCE))
  until "$@" >/tmp/awaited 2>&1; do
    [ "$(date +%s)" -lt "$end" ] || fail "still not true after $PATIENCE s: $*: $(cat /tmp/awaited)"
    usleep 100000
  done
}

# The last line of the answer; the server ends the connection. On the client's side.
http() { # ADDRESS PORT PATH
  printf 'GET %s HTTP/1.0\r\n\r\n' "$3" | client nc.openbsd -w 120 "$1" "$2" | tail -n 1
}

# Which pod answers through the VIP, and whom it sees.
reached() { http $VIP 80 /cgi-bin/who | grep . || echo nobody; }

boot() {
  busybox mkdir -p /proc /sys /dev /tmp /run
  busybox mount -t proc proc /proc
  busybox mount -t sysfs sysfs /sys
  busybox mount -t devtmpfs devtmpfs /dev
  busybox --install -s /bin
  mount -t bpf bpf /sys/fs/bpf
  exec 3>/dev/ttyS1
  # The rest is loaded by the kernel as it is needed, as on any node.
  for module in veth dummy ip_vs nf_conntrack; do modprobe $module || fail "modprobe $module"; done
  echo "$(uname -r), scenario $scenario"
}

build_network() {
  ip link set lo up
  for name in client pods; do
    { ip netns add $name && ip -netns $name link set lo up; } || fail "namespace $name"
  done
  ip -batch - <<NODE || fail "devices"
link add eth0 address $NODE_MAC type veth peer name eth0 netns client
link add pods0 type veth peer name eth0 netns pods
addr add $NODE/24 dev eth0
addr add 10.99.1.1/24 dev pods0
link set eth0 up
link set pods0 up
NODE
  # The client does not ask for the VIP's MAC address: whose it is, is not what is tested here.
  ip -netns client -batch - <<CLIENT || fail "client"
addr add $CLIENT/24 dev eth0
link set eth0 up
neigh replace $VIP lladdr $NODE_MAC dev eth0
CLIENT
  ip -netns pods -batch - <<PODS || fail "pods"
addr add 10.99.1.2/24 dev eth0
addr add 10.99.1.3/24 dev eth0
link set eth0 up
route add default via 10.99.1.1
PODS
  ip netns exec pods nc -ll -p 8081 -e /bin/cat &
  echo 1 >/proc/sys/net/ipv4/ip_forward
}

# Pods echo on 8081. This one answers HTTP on 8080 with its name and the client that it sees.
start_pod() { # NAME ADDRESS
  mkdir -p "/www/$1/cgi-bin"
  printf '#!/bin/sh\nprintf "\\n%s $REMOTE_ADDR\\n"\n' "$1" >"/www/$1/cgi-bin/who"
  chmod 755 "/www/$1/cgi-bin/who"
  ip netns exec pods httpd -p "$2:8080" -h "/www/$1" || fail "httpd"
}

# Rules, and a packet path that this kernel's verifier has taken.
is_serving() { nft list table ip sheave | grep -q '10\.99\.1\.2' && ip link show dev eth0 | grep -q prog/xdp; }

start_speaker() {
  KUBECONFIG=/etc/kubeconfig sheave-speaker run --node-name node --node-ip $NODE --sysctl-dir /proc/sys/net \
    --log-format text >/tmp/speaker.log 2>&1 &
  speaker=$!
  await is_serving
}

stop_speaker() {
  kill $speaker
  wait $speaker || fail "the speaker ended with $?"
}

boot
build_network
. "/$scenario.sh"
finish done
