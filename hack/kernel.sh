#!/bin/sh
# Prints the path of a kernel for hack/vm.sh: kernel.sh [PATH | RELEASE]. A path is printed as it is; of a release of Debian
# (sid, trixie …) the kernel is fetched once into /var/cache/qstack-tests, without installing anything; without an argument, or
# with "installed", it is the newest that is installed.
set -eu
hack=$(cd "$(dirname "$0")" && pwd)
case ${1:-} in
    '' | installed) ls -1 /boot/vmlinuz-*-amd64 2>/dev/null | tail -n 1; exit ;;
    */*) echo "$1"; exit ;;
esac
place=/var/cache/qstack-tests/kernel-$1
if [ ! -e "$place" ]; then
    mkdir -p "${place%/*}"
    # Appears under its name when it is whole.
    work=$(mktemp -d "$place.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    chmod 755 "$work"
    APT_CONFIG=$("$hack/apt-of.sh" "$1" "$work")
    export APT_CONFIG
    cd "$work"
    image=$(apt-cache depends linux-image-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
    # Newer releases have the kernel and its modules in packages of their own.
    parts=$(apt-cache depends "$image" | sed -n 's/.*Depends: \(linux-\(base\|binary\|modules\)-[0-9].*\)/\1/p')
    # shellcheck disable=SC2086 # a list of packages
    apt-get download -qq "$image" $parts >&2
    for package in *.deb; do dpkg -x "$package" root; done
    rm -rf ./*.deb apt
    modules=$(ls -d root/lib/modules/* root/usr/lib/modules/* 2>/dev/null | head -n 1)
    depmod -b "$work/${modules%/lib/modules/*}" "${modules##*/}" >&2
    mv -T "$work" "$place"
    trap - EXIT
fi
ls "$place"/root/boot/vmlinuz-* "$place"/root/usr/lib/modules/*/vmlinuz 2>/dev/null | head -n 1
