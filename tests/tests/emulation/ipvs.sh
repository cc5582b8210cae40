# A node on which kube-proxy in IPVS mode has set up the VIP, with a pod that the speaker does not know: an answer tells which of the two has
# translated. Looked at before the speaker, with it, after it has ended, and after uninstall.

# kube-proxy has put this address on its device too, and no VirtualIP names it: the packet path lets its ARP pass to the kernel.
OTHER=192.0.2.201

# Of a Service whose source ranges the client is not in.
CLOSED=192.0.2.202

# As pkg/proxy/ipvs/proxier.go of Kubernetes does it.
play_kube_proxy() {
  ip link add kube-ipvs0 type dummy
  ip addr add $VIP/32 dev kube-ipvs0
  ip addr add $OTHER/32 dev kube-ipvs0
  ip addr add $CLOSED/32 dev kube-ipvs0
  echo 1 >/proc/sys/net/ipv4/vs/conntrack
  echo 0 >/proc/sys/net/ipv4/vs/conn_reuse_mode
  for ports in 80:8080 81:8081; do
    ipvsadm -A -t "$VIP:${ports%:*}" -s rr || fail "ipvsadm: service"
    ipvsadm -a -t "$VIP:${ports%:*}" -r "10.99.1.3:${ports#*:}" -m || fail "ipvsadm: real server"
  done
  ipvsadm -A -t $CLOSED:80 -s rr || fail "ipvsadm: service"
  ipvsadm -a -t $CLOSED:80 -r 10.99.1.3:8080 -m || fail "ipvsadm: real server"
  ip -netns client neigh replace $CLOSED lladdr $NODE_MAC dev eth0
}

# Whether the client is admitted where it should not be. A connection that is let through is there within 20 s, also on a slow guest.
admitted() { client nc.openbsd -z -w 20 $CLOSED 80 && echo yes || echo no; }

# The node's own address is requested too: that one is answered.
answers_arp() { # ADDRESS
  local answer=no
  # No answer is none within 10 s: the guest may be slow.
  client arping -q -f -c 10 -w 10 -I eth0 "$1" && answer=yes
  client arping -q -f -c 20 -w 20 -I eth0 $NODE || fail "no ARP reply for the node's own address"
  echo $answer
}

# As which address the node asks for the client's MAC address when an answer is to be sent there.
asks_as() {
  client nft -f - <<RULES
add table netdev watch
delete table netdev watch
table netdev watch {
  counter vip { }
  counter node { }
  chain ingress {
    type filter hook ingress device "eth0" priority 0; policy accept;
    arp operation request arp daddr ip $CLIENT arp saddr ip $VIP counter name vip
    arp operation request arp daddr ip $CLIENT arp saddr ip $NODE counter name node
  }
}
RULES
  ip neigh flush dev eth0
  reached >/tmp/reached
  local asked=
  for name in vip node; do
    client nft list counter netdev watch $name | grep -q 'packets 0 ' || asked="$asked$name"
  done
  echo "$asked"
}

# From which ports of the client; those that are over stay for two minutes.
connections() { ipvsadm -L -n -c | grep "$VIP:80 " | grep -o "$CLIENT:[0-9]*"; }
setting() { cat "/proc/sys/net/ipv4/conf/all/$1"; }

look() { # WHEN
  # busybox takes an empty file for a pattern that fits everything.
  { echo none; connections; } >/tmp/connections
  found "$1.reached" "$(reached)"
  found "$1.ipvs_connections" "$(connections | grep -cvxFf /tmp/connections)"
  found "$1.outside_the_ranges" "$(admitted)"
  found "$1.answers_arp" "$(answers_arp $OTHER)"
  found "$1.asks_as" "$(asks_as)"
  found "$1.arp_ignore" "$(setting arp_ignore)"
  found "$1.arp_announce" "$(setting arp_announce)"
  found "$1.packet_path" "$(ip link show dev eth0 | grep -o 'prog/xdp' || echo none)"
}

# To port 81, where the pod echoes.
open_connection() {
  mkfifo /tmp/to
  client nc.openbsd $VIP 81 </tmp/to >/tmp/from &
  open=$!
  # Keeps it open.
  sleep 36000 >/tmp/to &
  echo hello >/tmp/to
  await grep -q hello /tmp/from
}

has_ended() { ! kill -0 $open; }

start_pod ours 10.99.1.2
start_pod ipvs 10.99.1.3
play_kube_proxy
look before
open_connection
start_speaker
echo still >/tmp/to
await has_ended
found open.reset "$(nft list counter ip sheave guard_reset | grep -q 'packets [1-9]' && echo yes || echo no)"
look with
stop_speaker
look left
sheave-speaker uninstall --sysctl-dir /proc/sys/net --log-format text >>/tmp/speaker.log 2>&1 || fail "uninstall"
look after
