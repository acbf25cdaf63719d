#!/bin/bash
# Runs a command in a virtual machine that systemd has booted as process 1, with the built programs in its
# PATH, and this directory (read-only) and the target directory where they are here:
# vm-systemd.sh COMMAND [ARGUMENT…]
# CGROUPS=hybrid and CGROUPS=legacy give cgroup v1, as systemd sets it up; MEMORY=4G more than 2G.
# The processor is emulated, 15 to 20 times slower than the host, unless KVM=1 says that KVM works.
set -euo pipefail
cd "$(dirname "$0")/.."
image=$(hack/vm-systemd-image.sh)
kernel=${image#*systemd-*-} kernel=${kernel%.ext4}
mkdir -p "${CARGO_TARGET_DIR:-target}"
target=$(cd "${CARGO_TARGET_DIR:-target}" && pwd)
bin=${QSTACK_BIN:-$target/release}
job=$(mktemp -d -p "$target" vm.XXXXXX)
trap 'rm -rf "$job"' EXIT

# The exit code comes back through a file: the console has no other way out.
mkdir "$job/bin"
for program in qrun qshim qengine qbundle; do
    [ ! -x "$bin/$program" ] || cp "$bin/$program" "$job/bin"
done
{
    echo "mkdir -p '$PWD'; cp /job/bin/* /usr/local/bin"
    echo "mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,ro source '$PWD'"
    echo "mkdir -p '$target' && mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 target '$target'"
    echo "export QSTACK_BIN=/usr/local/bin QSTACK_VM=systemd CARGO_TARGET_DIR='$target' CI='${CI:-}' HOME=/root"
    echo "ip link set lo up; cd '$PWD'"
    printf '%q ' "$@"
    echo "; echo \$? > /job/code"
} > "$job/script"

accel=(-accel "tcg,thread=multi" -cpu max)
[ -z "${KVM:-}" ] || accel=(-accel kvm -cpu host)
options="console=ttyS0 root=/dev/vda rw quiet panic=-1 psi=1 systemd.show_status=0"
case ${CGROUPS:-} in
    hybrid | legacy) options+=" systemd.unified_cgroup_hierarchy=0" ;;
esac
[ "${CGROUPS:-}" != legacy ] || options+=" systemd.legacy_systemd_cgroup_controller=1"
share=security_model=none
timeout --foreground -k 10 "${VM_TIMEOUT:-1800}" qemu-system-x86_64 "${accel[@]}" -m "${MEMORY:-2G}" -smp 2 -nographic -no-reboot -nic none \
    -kernel "/boot/vmlinuz-$kernel" -initrd "/boot/initrd.img-$kernel" -append "$options" \
    -drive "file=$image,format=raw,if=virtio,snapshot=on" -virtfs "local,path=$job,mount_tag=job,$share" \
    -virtfs "local,path=$PWD,mount_tag=source,readonly=on,$share" \
    -virtfs "local,path=$target,mount_tag=target,$share" < /dev/null
exit "$(cat "$job/code" 2>/dev/null || echo 125)"
