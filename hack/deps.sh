#!/bin/sh
# Installs what is missing of what a step needs, on Debian: deps.sh build|test|bench|vm|deny …
set -eu

# Words are command:package, or a path and its package.
build="musl-gcc:musl-tools cc:gcc /usr/include/stdio.h:libc6-dev"
quickstart="$build busybox:busybox-static nft:nftables"
tests="$quickstart docker-registry:docker-registry iptables:iptables ip:iproute2 curl:curl
    debootstrap:debootstrap runc:runc crun:crun podman:podman /usr/lib/podman/netavark:netavark containerd:containerd
    skopeo:skopeo umoci:umoci ps:procps strace:strace htpasswd:apache2-utils openssl:openssl zstd:zstd
    setpriv:util-linux newuidmap:uidmap /usr/include/seccomp.h:libseccomp-dev"
bench="$tests iperf3:iperf3"
vm="qemu-system-x86_64:qemu-system-x86 pip3:python3-pip apparmor_parser:apparmor /boot/vmlinuz:linux-image-amd64"

missing() {
    for word in "$@"; do
        what=${word%%:*} package=${word#*:}
        case $what in
            /boot/vmlinuz) ls /boot/vmlinuz-*-amd64 >/dev/null 2>&1 || echo "$package" ;;
            /*) [ -e "$what" ] || echo "$package" ;;
            *) command -v "$what" >/dev/null || echo "$package" ;;
        esac
    done
}

for step in "$@"; do
    case $step in
        build) words=$build ;;
        quickstart) words=$quickstart ;;
        test) words=$tests ;;
        bench) words=$bench ;;
        vm) words=$vm ;;
        nextest | deny) command -v "cargo-$step" >/dev/null || cargo install --locked --quiet "cargo-$step"; continue ;;
        *) echo "deps.sh: no such step: $step" >&2; exit 2 ;;
    esac
    # shellcheck disable=SC2086 # words and packages are lists
    packages=$(missing $words)
    if [ -n "$packages" ]; then
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq
        # shellcheck disable=SC2086
        apt-get install -y -qq --no-install-recommends $packages >/dev/null
    fi
    [ "$step" != vm ] || command -v vng >/dev/null || pip3 install --quiet --break-system-packages virtme-ng 2>/dev/null || pip3 install --quiet virtme-ng
done
