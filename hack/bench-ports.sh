#!/bin/sh
# What a published port costs: iperf3 through a bridge made by hand, through a published port and
# through the userland forwarder, and 2,000 connections at once. bench-ports.sh [ROUNDS [SECONDS]]
# The single figures go to target/bench/ports.json. Needs root.
set -eu
cd "$(dirname "$0")/.."
hack/deps.sh bench
hack/build.sh
cargo run --locked --quiet --release -p stack-tests --bin bench-ports -- "$@"
