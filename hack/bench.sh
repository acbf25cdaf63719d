#!/bin/sh
# Starting a container with qrun, crun, runc and nothing at all (the floor), with and without the
# default seccomp profile, and with qengine and podman: side by side in one run. bench.sh [RUNS [engines|runtimes]]
# The single times go to target/bench/*.json. Needs root.
set -eu
cd "$(dirname "$0")/.."
hack/deps.sh bench
hack/build.sh
cargo run --locked --quiet --release -p stack-tests --bin bench -- "$@"
