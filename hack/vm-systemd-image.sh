#!/bin/bash
# Makes the disk image that vm-systemd.sh boots, and prints its path. It is kept and used again until the
# kernel changes or the number in its name. At boot it runs the script of the directory shared as `job`.
set -euo pipefail
cache=/var/cache/qstack-tests
packages=systemd,systemd-sysv,dbus,dbus-user-session,libpam-systemd,kmod,busybox-static,procps,iproute2
packages+=,fdisk,util-linux,jq,bats,uidmap,strace,gcc,libc6-dev,bsdextrautils,expect
kernel=$(ls -1 /boot/vmlinuz-*-amd64 2>/dev/null | tail -n 1)
[ -n "$kernel" ] && command -v qemu-system-x86_64 debootstrap mke2fs >/dev/null ||
    { echo "$0: run hack/deps.sh vm test first" >&2; exit 1; }
version=${kernel#/boot/vmlinuz-}
image=$cache/systemd-1-$version.ext4
mkdir -p "$cache"
exec 9>"$cache/systemd.lock"
flock 9
if [ ! -e "$image" ]; then
    tree=$(mktemp -d -p "$cache" tree.XXXXXX)
    trap 'rm -rf "$tree" "$image.new"' EXIT
    debootstrap --variant=minbase --include="$packages" bookworm "$tree" >"$cache/systemd.log"
    mkdir -p "$tree/usr/lib/modules"
    cp -a "/lib/modules/$version" "$tree/usr/lib/modules"
    units=$tree/etc/systemd/system
    mkdir -p "$tree/job" "$units/multi-user.target.wants"
    cat >"$units/job.service" <<'UNIT'
[Unit]
After=dbus.service systemd-logind.service systemd-user-sessions.service
[Service]
Type=oneshot
ExecStartPre=/bin/mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 job /job
ExecStart=/bin/sh /job/script
StandardOutput=tty
StandardError=inherit
TTYPath=/dev/ttyS0
ExecStopPost=/bin/systemctl --no-block poweroff
UNIT
    ln -s ../job.service "$units/multi-user.target.wants"
    for unit in serial-getty@ttyS0.service getty@tty1.service apt-daily.timer apt-daily-upgrade.timer; do
        ln -s /dev/null "$units/$unit"
    done
    mke2fs -q -t ext4 -d "$tree" "$image.new" 3G >&2
    mv "$image.new" "$image"
fi
echo "$image"
