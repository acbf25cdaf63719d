#!/bin/sh
# Installs what build.sh built: install.sh [PREFIX], to PREFIX/bin and PREFIX/share, /usr/local by default.
set -eu
cd "$(dirname "$0")/.."
from=${CARGO_TARGET_DIR:-target}/release
prefix=${1:-/usr/local}
for program in qrun qshim containerd-shim-qrun-v2 qengine qbundle; do
    [ -x "$from/$program" ] || { echo "install.sh: no $from/$program: run hack/build.sh first" >&2; exit 1; }
done
install -d "$prefix/bin"
for program in qrun qshim containerd-shim-qrun-v2 qengine qbundle; do
    install -m 755 "$from/$program" "$prefix/bin/$program"
    echo "$prefix/bin/$program"
done

# The manual and the shells' completions come out of the programs themselves.
share=$prefix/share
install -d "$share/bash-completion/completions" "$share/zsh/site-functions" "$share/fish/vendor_completions.d"
for program in qengine qbundle; do
    "$from/$program" man "$share/man/man1"
    "$from/$program" completion bash > "$share/bash-completion/completions/$program"
    "$from/$program" completion zsh > "$share/zsh/site-functions/_$program"
    "$from/$program" completion fish > "$share/fish/vendor_completions.d/$program.fish"
done
"$from/qrun-docs" man "$share/man/man8"
"$from/qrun-docs" completion bash > "$share/bash-completion/completions/qrun"
"$from/qrun-docs" completion zsh > "$share/zsh/site-functions/_qrun"
"$from/qrun-docs" completion fish > "$share/fish/vendor_completions.d/qrun.fish"
echo "$share: manual pages, completions for bash, zsh and fish"
