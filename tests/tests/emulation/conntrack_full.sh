# Conntrack nearly full, then full of connections that live, here and not in a namespace because the limit is the machine's. What a new client sees, what the
# speaker reports, and that there is room again.

CONNECTIONS=9
CONNTRACK=/proc/sys/net/netfilter/nf_conntrack

# The speaker's own packets need no entry: else its attempts to reach an API server, and adverts, would be among what is counted.
keep_own_packets_out() {
  nft -f - <<RULES || fail "notrack"
table ip raw {
  chain output {
    type filter hook output priority -300; policy accept;
    ip daddr { 127.0.0.0/8, 224.0.0.0/4 } notrack
  }
  chain prerouting {
    type filter hook prerouting priority -300; policy accept;
    iif lo notrack
  }
}
RULES
}

# To port 81, where the pod echoes.
hold_connections() {
  for number in $(seq $CONNECTIONS); do
    mkfifo "/tmp/to$number"
    client nc.openbsd $VIP 81 <"/tmp/to$number" >"/tmp/from$number" &
    # Keeps it open.
    sleep 36000 >"/tmp/to$number" &
    echo hello >"/tmp/to$number"
    await grep -q hello "/tmp/from$number"
  done
}

first_is_alive() {
  echo "$1" >/tmp/to1
  await grep -q "$1" /tmp/from1
}

# The kernel's own count, of one processor, in hexadecimal.
dropped() {
  awk 'NR == 1 { for (i = 1; i <= NF; i++) if ($i == "drop") column = i } NR == 2 { print $column }' /proc/net/stat/nf_conntrack
}
has_dropped() { [ $((0x$(dropped))) -ge "$1" ]; }

# What the speaker says, on the loopback.
admin() { printf 'GET %s HTTP/1.0\r\n\r\n' "$1" | nc.openbsd -w 20 127.0.0.1 "$2"; }
metric() { admin /metrics 7483 | awk -v name="$1" '$1 == name { print $2 }'; }
reports_dropped() { [ "$(metric sheave_conntrack_dropped_total)" -ge 1 ]; }
notes() { admin /readyz 7482 | grep -o 'conntrack_[a-z_]*' | sort -u | tr '\n' ' '; }
is_noted() { notes | grep -q "$1"; }

retransmitted() {
  client cat /proc/net/snmp | awk '/^Tcp:/ {
    if (column) print $column
    for (i = 1; i <= NF; i++) if ($i == "RetransSegs") column = i
  }'
}
has_retransmitted() { [ "$(retransmitted)" -gt "$1" ]; }

start_pod ours 10.99.1.2
keep_own_packets_out
start_speaker
hold_connections
found held.entries "$(cat ${CONNTRACK}_count)"
found held.dropped "$(dropped)"
found held.notes "$(notes)"
# 90 %.
echo $((CONNECTIONS + 1)) >${CONNTRACK}_max
await is_noted conntrack_nearly_full
found near.notes "$(notes)"
found near.dropped "$(dropped)"
cat ${CONNTRACK}_count >${CONNTRACK}_max
before=$(retransmitted)
reached >/tmp/late &
late=$!
await has_retransmitted "$before"
await has_dropped 2
await reports_dropped
found full.answer "$(cat /tmp/late)"
found full.notes "$(notes)"
found full.entries "$(metric sheave_conntrack_entries)"
found full.limit "$(metric sheave_conntrack_limit)"
first_is_alive still
found full.connections alive
echo 1000 >${CONNTRACK}_max
wait $late
found room.answer "$(cat /tmp/late)"
