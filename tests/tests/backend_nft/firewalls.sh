#!/bin/sh
# A shell in a root of its own, which reads commands from its standard input: this machine's files, below those of firewalld and ufw. What
# is written goes to memory. The network namespace is the caller's. Started in a mount and a PID namespace of its own.
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
mkdir /mnt/programs /mnt/written /mnt/work /mnt/root
# A copy: layers must not lie in each other.
cp -r "$1/." /mnt/programs
mount -t overlay overlay -o lowerdir=/mnt/programs:/,upperdir=/mnt/written,workdir=/mnt/work /mnt/root
mount -t proc proc /mnt/root/proc
mount --rbind /dev /mnt/root/dev
mount --rbind /sys /mnt/root/sys
mount -t tmpfs tmpfs /mnt/root/run
mkdir /mnt/root/run/dbus
exec chroot /mnt/root /bin/sh
