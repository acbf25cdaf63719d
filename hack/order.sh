#!/bin/sh
# Finds out anew which functions of qrun start containers, and writes them to runtime/order.ld, by which they are linked next to
# each other. Worth it when the path of `run` or `exec` has changed much, or with a compiler that names symbols otherwise.
# Needs root, x86-64, and `nm`.
set -eu
cd "$(dirname "$0")/.."
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/order"
# With the names of functions.
CARGO_PROFILE_RELEASE_STRIP=none cargo build --locked --release --target "$(uname -m)-unknown-linux-musl" -p qrun
cargo run --locked --quiet -p stack-tests --bin order -- "$CARGO_TARGET_DIR/$(uname -m)-unknown-linux-musl/release/qrun" \
    > "$CARGO_TARGET_DIR/order.ld"
mv "$CARGO_TARGET_DIR/order.ld" runtime/order.ld
