#!/bin/sh
# From a fresh clone to a process in a container: installs what the build needs, builds, makes the
# image `base` out of the machine's busybox, and runs it. Needs root, Debian and Rust.
set -eu
cd "$(dirname "$0")/.."
as_root=""
[ "$(id -u)" = 0 ] || as_root=sudo

echo "1/4 what the build needs"
$as_root hack/deps.sh quickstart
echo "2/4 building (the first time takes some minutes)"
hack/build.sh
PATH=$(cd "${CARGO_TARGET_DIR:-target}/release" && pwd):$PATH
echo "3/4 the image base, out of this machine's static busybox"
$as_root env PATH="$PATH" qengine image build-base
echo "4/4 qengine run --rm base sh -c '…'"
# shellcheck disable=SC2016 # the container's shell expands it
$as_root env PATH="$PATH" qengine run --rm base sh -c \
    'echo "Hello from a container: process $$ of $(hostname), $(busybox | head -n 1)"'
