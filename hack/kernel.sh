#!/bin/sh
# Prints the path of a kernel for hack/vm.sh: kernel.sh [PATH | RELEASE]. A path is printed as it is; of a release of Debian
# (sid, trixie …) the kernel is fetched, without installing anything; without an argument, or with "installed", it is the newest
# that is installed.
set -eu
# shellcheck source=hack/fetched.sh
. "$(dirname "$0")/fetched.sh"
case ${1:-} in
    '' | installed) ls -1 /boot/vmlinuz-*-amd64 2>/dev/null | tail -n 1; exit ;;
    */*) echo "$1"; exit ;;
esac
download() {
    image=$(apt-cache depends linux-image-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
    # Newer releases have the kernel and its modules in packages of their own.
    parts=$(apt-cache depends "$image" | sed -n 's/.*Depends: \(linux-\(base\|binary\|modules\)-[0-9].*\)/\1/p')
    # shellcheck disable=SC2086 # a list of packages
    apt-get download -qq "$image" $parts
}
finish() {
    modules=$(ls -d root/lib/modules/* root/usr/lib/modules/* 2>/dev/null | head -n 1)
    depmod -b "$PWD/${modules%/lib/modules/*}" "${modules##*/}"
}
fetched "kernel-$1" "$1"
ls "$place"/root/boot/vmlinuz-* "$place"/root/usr/lib/modules/*/vmlinuz 2>/dev/null | head -n 1
