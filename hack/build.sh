#!/bin/sh
# Builds the programs, static, and leaves them in target/release/ whichever Rust target they were
# built for: musl where its standard library and C compiler can be had, else glibc linked in.
set -eu
cd "$(dirname "$0")/.."
target_dir=${CARGO_TARGET_DIR:-target}
arch=$(uname -m)
musl=$arch-unknown-linux-musl

have_musl() {
    command -v musl-gcc >/dev/null || return 1
    [ -d "$(rustc --print sysroot)/lib/rustlib/$musl/lib" ] && return 0
    command -v rustup >/dev/null && rustup target add "$musl" >/dev/null 2>&1
}

if have_musl; then
    target=$musl
else
    target=$arch-unknown-linux-gnu
    export RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static"
    echo "build.sh: no musl (rustup target, musl-tools): linking glibc statically" >&2
fi

# What `qrun --version` tells.
QSTACK_COMMIT=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
export QSTACK_COMMIT
cargo build --locked --release --target "$target" -p qrun -p qshim -p qengine -p bundle-tools
mkdir -p "$target_dir/release"
for program in qrun qrun-docs qshim containerd-shim-qrun-v2 qengine qbundle; do
    # cargo leaves the names of functions in programs whose packages have a profile of their own. By rename: a program
    # that runs at the moment cannot be written over.
    cp "$target_dir/$target/release/$program" "$target_dir/release/.$program.new"
    # In place: what it writes at once into a new file the kernel keeps in larger pieces, and maps more of them at a time, which
    # counts as 200 KiB of memory until the file is read anew.
    strip "$target_dir/release/.$program.new"
    mv "$target_dir/release/.$program.new" "$target_dir/release/$program"
done
