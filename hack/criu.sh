#!/bin/sh
# Prints a directory with criu 4 or newer, to be put before PATH. Where the machine's is older, or there is none, it is that of
# Debian sid, fetched once with all it is linked with into /var/cache/qstack-tests, without installing anything.
set -eu
hack=$(cd "$(dirname "$0")" && pwd)
case $(criu --version 2>/dev/null) in
    'Version: '[4-9]*) dirname "$(command -v criu)"; exit ;;
esac
place=/var/cache/qstack-tests/criu
if [ ! -e "$place" ]; then
    mkdir -p "${place%/*}"
    # Appears under its name when it is whole.
    work=$(mktemp -d "$place.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    chmod 755 "$work"
    APT_CONFIG=$("$hack/apt-of.sh" sid "$work")
    export APT_CONFIG
    apt-get install -qq --yes --download-only --no-install-recommends criu >&2
    for package in "$work"/apt/archives/*.deb; do dpkg -x "$package" "$work/root"; done
    rm -rf "$work/apt"
    mkdir "$work/bin"
    # By the dynamic linker of its own C library, which is newer than the machine's.
    cat > "$work/bin/criu" << 'WRAPPER'
#!/bin/sh
root=$(dirname "$0")/../root
exec "$root"/usr/lib64/ld-linux-*.so.* --library-path "$(echo "$root"/usr/lib/*-linux-gnu)" "$root/usr/sbin/criu" "$@"
WRAPPER
    chmod 755 "$work/bin/criu"
    mv -T "$work" "$place"
    trap - EXIT
fi
echo "$place/bin"
