#!/bin/sh
# Runs a command in a virtual machine with pure cgroup v2, all capabilities and AppArmor, on the
# host's own files, read-only but for the target directory, with a /tmp of its own:
# vm.sh COMMAND [ARGUMENT…]
# The kernel is the newest one installed, or KERNEL: a path, or a Debian release (see hack/kernel.sh).
# VM_SHOW names more directories that it is to see although they are below /tmp.
# The processor is emulated, 15 to 20 times slower than the host, unless KVM=1 says that KVM works.
set -eu
cd "$(dirname "$0")/.."
kernel=$(hack/kernel.sh "${KERNEL:-}")
[ -n "$kernel" ] && command -v vng >/dev/null || { echo "vm.sh: run hack/deps.sh vm first" >&2; exit 1; }
mkdir -p "${CARGO_TARGET_DIR:-target}"
target=$(cd "${CARGO_TARGET_DIR:-target}" && pwd)
shared=$(mktemp -d -p "$target" vm.XXXXXX)
trap 'kill -s KILL -- "-$(cat "$shared/group")" 2>/dev/null || true; rm -rf "$shared"' EXIT
trap 'exit 1' HUP INT TERM

# The exit code comes back through a file: the console has no other way out.
{
    echo "cd '$PWD'"
    echo "export PATH='$PATH' QSTACK_VM=1 CARGO_TARGET_DIR='$target' CI='${CI:-}'"
    [ -z "${QSTACK_BIN:-}" ] || echo "export QSTACK_BIN='$QSTACK_BIN'"
    # The target directory may itself be below /tmp.
    echo "mkdir /run/host && mount --rbind / /run/host && mount -t tmpfs tmpfs /tmp"
    for shown in "$target" ${VM_SHOW:-}; do
        echo "mkdir -p '$shown' && mount --bind '/run/host$shown' '$shown'"
    done
    echo "umount -R -l /run/host; ip link set lo up"
    printf '"%s" ' "$@"
    echo "; echo \$? > '$shared/code'"
} > "$shared/script"

# What the tests use of other Debians (hack/fetched.sh). The machine's own /var/cache is empty.
fetched=/var/cache/qstack-tests
[ -d $fetched ] && fetched=--rodir=$fetched || fetched=
# Kernel 7.2 patches its code while it runs, and with a thread for each processor QEMU 7.2 once in a while runs into a breakpoint
# that is not there any more. With one thread for both the tests take half an hour.
threads=multi limit=2400
case ${KERNEL:-installed} in installed) ;; *) threads=single limit=5400 ;; esac
accel="--disable-kvm --qemu-opts=-accel --qemu-opts=tcg,thread=$threads"
[ -z "${KVM:-}" ] || accel=
# Through a pipe, because the machine opens its output anew: a file would lose what is in it. In a group of its
# own, which ends as a whole: a vng that is killed leaves the emulator running.
# shellcheck disable=SC2086,SC2016 # no word where there is none; for the other shell
setsid sh -c 'echo $$ > "$0"; trap : TERM; timeout --foreground -k 10 "$@"; kill 0' "$shared/group" \
    "${VM_TIMEOUT:-$limit}" vng -r "$kernel" $accel --cpus 2 -m 4G --user root -a psi=1 -a apparmor=1 -a security=apparmor \
    --rwdir="$target" $fetched -- "sh $shared/script" < /dev/null 2>&1 | cat &
wait $!
exit "$(cat "$shared/code" 2>/dev/null || echo 125)"
