#!/usr/bin/env bash
# The tests of SELinux, and of what labels touch, on the machine of
# hack/test-v2.sh with SELinux in force and the policy test/vm/selinux.cil.
# PACKAGES and ARGS as there.
set -euo pipefail
cd "$(dirname "$0")/.."
export SELINUX=yes PACKAGES=${PACKAGES:-engine=TestRelabel|TestSELinux shim/launch shim/oci=SELinux test/e2e=TestScripts/selinux}
exec hack/test-v2.sh
