#!/usr/bin/env bash
# All tests, with all that they need: units without root, the same with the
# race detector and as root, the scripts against a real daemon, conformance.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "$(id -u)" -ne 0 ]; then
	exec sudo --preserve-env=PATH,CI "$0" "$@"
fi
# What a test that makes real containers needs is there, so none may skip.
export REQUIRE=root

say() { printf '\n== %s ==\n' "$*"; }

say install
hack/need.sh gcc:gcc /usr/include/stdlib.h:libc6-dev /usr/include/seccomp.h:libseccomp-dev busybox:busybox-static \
	docker-registry:docker-registry containerd-shim-runc-v2:containerd runc:runc

say units
hack/units.sh

say 'as root, with the race detector'
CGO_ENABLED=1 go test -race ./...

say arm64
hack/test-arm64.sh

say demonstration
hack/demo.sh -once

say scripts
(cd test && go vet ./... && go test ./...)

say conformance
hack/conformance.sh -- -parallel 4
hack/conformance.sh -focus Streaming -- -websocket-exec -websocket-attach -websocket-portforward
hack/conformance.sh -skips known-skips-foreign.txt -- -parallel 4 -runtime-handler foreign # containers by containerd's shim and runc
hack/conformance-oci.sh

say 'Docker and Podman'
hack/callers.sh

say 'a machine with cgroup v2' # all of the scripts there: make test-v2
# Those of what is another thing there: limits, OOM kills, user namespaces, and CRIU, which not every kernel suits;
# of shim/oci without TestInjected..., which takes two minutes.
PACKAGES="internal/cgroup cni/plugin images/unpack shim/client shim/keeper shim/launch shim/oci=^Test[^I] shim/seccomp
	test/e2e=TestScripts/(checkpoint|oom|resources|userns)" hack/test-v2.sh
