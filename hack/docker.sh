#!/bin/sh
# Prints a directory with Docker's dockerd and docker, to be put before PATH: the machine's own, or those of the machine's release of
# Debian, fetched without installing anything (a Docker that is installed changes the packet filter).
set -eu
# shellcheck source=hack/fetched.sh
. "$(dirname "$0")/fetched.sh"
if command -v dockerd >/dev/null; then dirname "$(command -v dockerd)"; exit; fi
download() {
    # The client is a package of its own in newer releases. Of the libraries only one is not on every machine.
    packages=$(apt-cache --quiet pkgnames | grep -xE 'docker\.io|docker-cli|tini|libdevmapper1\.02\.1(t64)?')
    # shellcheck disable=SC2086 # a list
    apt-get download -qq $packages
}
finish() {
    mkdir bin
    cat > bin/dockerd << 'WRAPPER'
#!/bin/sh
root=$(dirname "$0")/../root
LD_LIBRARY_PATH=$(echo "$root"/*/*-linux-gnu | tr ' ' :) exec "$root/usr/sbin/dockerd" "$@"
WRAPPER
    chmod 755 bin/dockerd
    (cd bin && ln -s ../root/usr/bin/docker ../root/usr/bin/docker-init ../root/usr/*bin/docker-proxy .)
}
# shellcheck source=/dev/null
release=$(. /etc/os-release && echo "$VERSION_CODENAME")
fetched "docker-$release" "$release"
echo "$place/bin"
