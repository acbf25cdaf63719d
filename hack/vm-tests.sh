#!/bin/sh
# Runs the tests that are for a virtual machine, in it: vm-tests.sh SKIPS E2E SECURITY UNITS
# SKIPS is a file for the names of those skipped, the others are test programs: the end-to-end tests,
# the attacks, and qrun's own, of which those of cgroups are run.
set -u
{ "$2" --skips && "$3" --skips; } > "$1" || exit
code=0
"$2" --test-threads 2 || code=1
"$3" --test-threads 2 || code=1
"$4" --test-threads 2 cgroup::tests || code=1
exit $code
