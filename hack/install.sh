#!/bin/sh
# Installs what build.sh built: install.sh [PREFIX], to PREFIX/bin, /usr/local/bin by default.
set -eu
cd "$(dirname "$0")/.."
from=${CARGO_TARGET_DIR:-target}/release
to=${1:-/usr/local}/bin
for program in qrun qshim qengine qbundle; do
    [ -x "$from/$program" ] || { echo "install.sh: no $from/$program: run hack/build.sh first" >&2; exit 1; }
done
install -d "$to"
for program in qrun qshim qengine qbundle; do
    install -m 755 "$from/$program" "$to/$program"
    echo "$to/$program"
done
