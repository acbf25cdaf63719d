#!/bin/sh
# Runs the tests that are for a virtual machine, in it: vm-tests.sh SKIPS E2E SECURITY UNITS
# SKIPS is a file for the names of those skipped, the others are test programs: the end-to-end tests,
# the attacks, and qrun's own, of which those of cgroups are run. In CI, as on the host, what failed is
# tried a second time, in a process of its own; SKIPS.flaky has the names of those that then passed.
set -u
{ "$2" --skips && "$3" --skips; } > "$1" || exit
flaky=$1.flaky log=$(mktemp) failed=$(mktemp) code=0

# Runs the tests of a program: tests PROGRAM [FILTER]
tests() {
    { "$@" --test-threads 2; echo $? > "$failed"; } 2>&1 | tee "$log"
    [ "$(cat "$failed")" != 0 ] || return 0
    # The names are the last of the lists under this title.
    awk '/^failures:/ { names = ""; next } sub(/^    /, "") { names = names $0 "\n" } END { printf "%s", names }' "$log" > "$failed"
    [ -n "${CI:-}" ] && [ -s "$failed" ] || return 1
    again=0
    while read -r name; do
        if "$1" --exact "$name" < /dev/null; then echo "FLAKY $name" >> "$flaky"; else again=1; fi
    done < "$failed"
    return $again
}

tests "$2" || code=1
tests "$3" || code=1
export QSTACK_NO_SKIPS=1
tests "$4" cgroup::tests || code=1
exit $code
