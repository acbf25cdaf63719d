#!/bin/bash
# All tests: units and end-to-end on this host, a part of the latter in a virtual machine with pure
# cgroup v2; then the check that the host is as before. Needs root. Set SKIP_VM=1 to leave the
# machine out, or VM_KERNELS to its kernels ("installed sid"). Arguments go to `cargo nextest run`.
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
"$target/debug/make-images"
e2e=$(cargo test --locked --no-run -p stack-tests --test e2e 2>&1 | sed -n 's/.*(\(.*e2e-[^)]*\)).*/\1/p')
before=$(mktemp)
trap 'rm -f "$before"' EXIT
"$target/debug/host-check" save "$before"

failed=()
cargo nextest run --locked --workspace --profile "$profile" "$@" || failed+=("tests on this host")
"$e2e" --skips | check_skips host || failed+=("skips on this host")
if [ -z "${SKIP_VM:-}" ]; then
    command="'$e2e' --skips > '$target/skips-vm'; exec '$e2e' --test-threads 2"
    for kernel in ${VM_KERNELS:-installed}; do
        KERNEL=$kernel hack/vm.sh sh -c "$command" || failed+=("tests in the virtual machine, kernel $kernel")
        check_skips vm < "$target/skips-vm" || failed+=("skips in the virtual machine, kernel $kernel")
    done
fi
"$target/debug/host-check" compare "$before" || failed+=("the host as it was before")

if [ ${#failed[@]} -gt 0 ]; then
    printf 'FAILED: %s\n' "${failed[@]}"
    exit 1
fi
echo "all tests passed; the host is as before"
