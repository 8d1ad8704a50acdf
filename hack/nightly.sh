#!/usr/bin/env bash
# What takes too long for every change: all tests on emulated machines with
# cgroup v2, with systemd and AppArmor, those of labels with SELinux, and of arm64;
# ten thousand launches with a failure injected in each; the OCI command line with a
# failure, and a kill, at each system call; critest ten times over, several specs at
# once; every fuzz target. hack/nightly.sh [STEP ...] runs some: v2 systemd selinux
# arm64 launches commands conformance fuzz.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "$(id -u)" -ne 0 ]; then
	exec sudo --preserve-env=PATH,CI "$0" "$@"
fi
export REQUIRE=root

v2() { hack/test-v2.sh; }
selinux() { hack/test-selinux.sh; }
systemd() { hack/test-systemd.sh; }
arm64() { hack/test-arm64-vm.sh; }
launches() { LONGSHORE_SOAK=10000 go test ./shim/launch -run TestFailuresLeaveNothing -count 1 -timeout 1h -v; }
commands() {
	hack/build.sh
	LONGSHORE_INJECT=1 LONGSHORE_BIN=$PWD/bin go test ./shim/oci -run 'Injected|KilledCreate' -count 1 -timeout 2h -v
}
conformance() { for _ in {1..10}; do hack/conformance.sh -- -parallel 4; done; }
fuzz() { hack/fuzz.sh 2m; }

if [ $# -eq 0 ]; then set -- v2 systemd selinux arm64 launches commands conformance fuzz; fi
for step in "$@"; do
	printf '\n== %s ==\n' "$step"
	"$step"
done
