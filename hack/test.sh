#!/bin/bash
# All tests: units and end-to-end on this host, a part of the latter in virtual machines with pure
# cgroup v2, and with systemd; then the check that the host is as before. Needs root. Set SKIP_VM=1 to
# leave the machines out, or VM_KERNELS to kernels of the first ("installed sid", see hack/kernel.sh).
# Arguments go to `cargo nextest run`.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "test.sh: the end-to-end tests need root" >&2; exit 1; }
target=${CARGO_TARGET_DIR:-target}
profile=default
[ -z "${CI:-}" ] || profile=ci

# Compares what is skipped with what may be: tests/expected-skips-WHERE.txt.
check_skips() {
    echo "--- skipped on $1, as expected:"
    diff -u "tests/expected-skips-$1.txt" - && cat "tests/expected-skips-$1.txt"
}

hack/deps.sh test nextest
[ -n "${SKIP_VM:-}" ] || hack/deps.sh vm
hack/build.sh
cargo build --locked --quiet -p stack-tests --bins --tests
# The runtime that qrun is compared with: youki's libcontainer, in a program of the tests alone.
cargo build --locked --quiet -p stack-tests --features libcontainer --bin libcontainer-run
"$target/debug/make-images"
binary() { cargo test --locked --no-run -p stack-tests --test "$1" 2>&1 | sed -n "s/.*(\(.*$1-[^)]*\)).*/\1/p"; }
e2e=$(binary e2e) security=$(binary security)
before=$(mktemp)
trap 'rm -f "$before"' EXIT
"$target/debug/host-check" save "$before"

failed=()
# What is needed has been installed: a unit test that lacks something fails; those end-to-end are listed.
log=$target/tests-host.log
QSTACK_NO_SKIPS=1 cargo nextest run --locked --workspace --profile "$profile" "$@" 2>&1 | tee "$log" || failed+=("tests on this host")
{ "$e2e" --skips; "$security" --skips; } | check_skips host || failed+=("skips on this host")
if [ -z "${SKIP_VM:-}" ]; then
    command="'$e2e' --skips > '$target/skips-vm'; exec '$e2e' --test-threads 2"
    for kernel in ${VM_KERNELS:-installed}; do
        KERNEL=$kernel hack/vm.sh sh -c "$command" || failed+=("tests in the virtual machine, kernel $kernel")
        check_skips vm < "$target/skips-vm" || failed+=("skips in the virtual machine, kernel $kernel")
    done
    for groups in systemd hybrid; do
        CGROUPS=$groups hack/vm-systemd.sh sh -c "$command" || failed+=("tests with systemd, $groups")
        check_skips $groups < "$target/skips-vm" || failed+=("skips with systemd, $groups")
    done
fi
differences=$("$target/debug/host-check" compare "$before" 2>&1) || failed+=("the host as it was before")

if [ ${#failed[@]} -gt 0 ]; then
    # Once more at the end, where it is looked for: what failed on this host.
    sed -n '/^ *Summary \[/,$p' "$log" | grep -E '^ *(Summary|FAIL|TIMEOUT|SIG[A-Z]+|ABORT|LEAK-FAIL)' | sort -u || true
    echo "$differences"
    printf 'FAILED: %s\n' "${failed[@]}"
    exit 1
fi
echo "all tests passed; the host is as before"
