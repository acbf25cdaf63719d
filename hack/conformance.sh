#!/bin/bash
# Runs runc's integration suite against qrun, as it was built last: conformance.sh [--vm] [OPTION…] SUITE [FILE.bats…]
# SUITE is a checkout of runc whose test programs have been built (`make test-binaries`), see docs/conformance.md.
# --vm runs it in a virtual machine with pure cgroup v2; --make-tree makes, by debootstrap, the tree that the suite runs in.
# --unified shows it the v2 hierarchy of a hybrid host alone.
# OPTION: --runtime FILE, --tree DIR, --images DIR, --work DIR, --results DIR, --known FILE, --filter TEXT. Needs root.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "conformance.sh: needs root" >&2; exit 1; }
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
export CARGO_TARGET_DIR=$target
cargo build --locked --quiet -p stack-tests --bin conformance
conformance=$target/debug/conformance

case ${1:-} in
--make-tree) exec "$conformance" make-tree ;;
--compare) shift; exec "$conformance" compare "$@" ;;
--vm) shift ;;
*) exec "$conformance" --known tests/conformance/known-host.txt "$@" ;;
esac

# In the machine: containers' files are on an ext4 of its own, because the host's files, shared with it, have no id-mapped
# mounts; and what the tests use of the kernel is loaded.
export VM_SHOW="${VM_SHOW:-}"
for word in "$@"; do
    # What is named on the command line has to be seen in there, even if it is below /tmp.
    case $word in /*) [ -d "$word" ] || word=$(dirname "$word"); VM_SHOW="$VM_SHOW $word" ;; esac
done
results=$target/conformance/results-vm
mkdir -p "$results"
printf -v arguments '%q ' --known tests/conformance/known-vm.txt --work /run/work --results "$results" "$@"
exec hack/vm.sh sh -c "
    modprobe -a loop bfq dummy ext4 overlay veth
    truncate -s 2G /tmp/disk && mkfs.ext4 -q -F /tmp/disk && mkdir -p /run/work && mount -o loop /tmp/disk /run/work
    '$conformance' $arguments"
