#!/bin/sh
# Prints a directory with criu 4 or newer, to be put before PATH. Where the machine's is older, or there is none, it is that of
# Debian sid, with all it is linked with.
set -eu
# shellcheck source=hack/fetched.sh
. "$(dirname "$0")/fetched.sh"
case $(criu --version 2>/dev/null) in
    'Version: '[4-9]*) dirname "$(command -v criu)"; exit ;;
esac
download() { apt-get install -qq --yes --download-only --no-install-recommends criu; }
finish() {
    mkdir bin
    # By the dynamic linker of its own C library, which is newer than the machine's.
    cat > bin/criu << 'WRAPPER'
#!/bin/sh
root=$(dirname "$0")/../root
exec "$root"/usr/lib64/ld-linux-*.so.* --library-path "$(echo "$root"/usr/lib/*-linux-gnu)" "$root/usr/sbin/criu" "$@"
WRAPPER
    chmod 755 bin/criu
}
fetched criu sid
echo "$place/bin"
