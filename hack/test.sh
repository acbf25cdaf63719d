#!/bin/bash
# All tests: units and end-to-end on this host, a part of them in virtual machines with pure cgroup v2,
# and with systemd; then the check that the host is as before. Needs root. Set SKIP_VM=1 to leave the
# machines out, or VM_KERNELS to kernels of the first ("installed sid", see hack/kernel.sh).
# Arguments go to `cargo nextest run`.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "test.sh: the end-to-end tests need root" >&2; exit 1; }
target=${CARGO_TARGET_DIR:-target} profile=default
[ -z "${CI:-}" ] || profile=ci

# Compares what is skipped with what may be: tests/expected-skips-WHERE.txt.
check_skips() {
    [ -n "$criu" ] || sed -i '/: no program criu$/d' "$2"
    echo "--- skipped on $1, as expected:" && diff -u "tests/expected-skips-$1.txt" "$2" && cat "$2"
}
# Runs the tests that are for a machine: machine WHERE COMMAND…, which starts one.
machine() {
    rm -f "$target/skips"
    "${@:2}" hack/vm-tests.sh "$target/skips" "$e2e" "$security" "$units" || failed+=("tests in the machine of ${*:2}")
    check_skips "$1" "$target/skips" || failed+=("skips in the machine of ${*:2}")
}
# Prints the path of a test program: binary PACKAGE OPTION…
binary() { cargo test --locked --no-run -p "$@" 2>&1 | sed -n 's/^ *Executable .*(\(.*\))$/\1/p'; }

hack/deps.sh test nextest $([ -n "${SKIP_VM:-}" ] || echo vm)
criu=$(hack/criu.sh) && PATH=$criu:$PATH || echo "test.sh: NO CRIU 4 TO BE HAD: checkpoints are not tested" >&2
PATH=$(hack/docker.sh):$PATH
hack/build.sh
cargo build --locked --quiet -p stack-tests --bins --tests
# The runtime that qrun is compared with: youki's libcontainer, in a program of the tests alone.
cargo build --locked --quiet -p stack-tests --features libcontainer --bin libcontainer-run
"$target/debug/make-images"
e2e=$(binary stack-tests --test e2e) security=$(binary stack-tests --test security) units=$(binary qrun --bin qrun)
before=$(mktemp) log=$target/tests-host.log failed=()
rm -f "$target/skips.flaky"
trap 'rm -f "$before"' EXIT
"$target/debug/host-check" save "$before"

# What is needed has been installed: a unit test that lacks something fails; those end-to-end are listed.
QSTACK_NO_SKIPS=1 cargo nextest run --locked --workspace --profile "$profile" "$@" 2>&1 | tee "$log" || failed+=("tests on this host")
{ "$e2e" --skips; "$security" --skips; } > "$target/skips"
check_skips host "$target/skips" || failed+=("skips on this host")
[ -n "${SKIP_VM:-}" ] || for kernel in ${VM_KERNELS:-installed}; do machine vm env "KERNEL=$kernel" hack/vm.sh; done
[ -n "${SKIP_VM:-}" ] || for groups in systemd hybrid; do machine $groups env "CGROUPS=$groups" hack/vm-systemd.sh; done
differences=$("$target/debug/host-check" compare "$before" 2>&1) || failed+=("the host as it was before")

# Once more at the end, where it is looked for: what failed on this host, or passed at the second try anywhere.
sed -n '/^ *Summary \[/,$p' "$log" | grep -E '^ *(Summary|FLAKY|(TRY .* )?(FAIL|TIMEOUT|SIG[A-Z]+|ABORT))' | sort -u || true
[ ! -e "$target/skips.flaky" ] || sed 's/^FLAKY/& in a machine:/' "$target/skips.flaky"
[ ${#failed[@]} -gt 0 ] || { echo "all tests passed; the host is as before"; exit; }
echo "$differences"
printf 'FAILED: %s\n' "${failed[@]}"
exit 1
