#!/usr/bin/env bash
# Builds both binaries for arm64 and runs the unit tests that qemu-user can: it
# knows neither clone3 nor the mount calls since 5.2, so that what makes real
# containers is left out.
set -euo pipefail
cd "$(dirname "$0")/.."
hack/need.sh qemu-aarch64-static:qemu-user-static
export GOARCH=arm64 CGO_ENABLED=0
go vet ./...
mkdir -p bin/arm64
go build -trimpath -tags nri_no_wasm -ldflags '-s -w' -o bin/arm64/longshore .
go build -trimpath -ldflags '-s -w -E main.entry' -o bin/arm64/longshore-shim ./shim
EMULATE=$(command -v qemu-aarch64-static)
export EMULATE
run=$EMULATE
if [ "$(id -u)" -eq 0 ]; then run=$PWD/hack/as-nobody.sh; fi
# What qemu-user does not know: clone3, openat2, prctl(PR_SET_CHILD_SUBREAPER)
# before any test of shim/oci, and seccomp filters, or to start another arm64
# program. When a process has started it tells by the thread that asks.
skip='^(TestLoop|TestProgramGrowsAtGate|TestChildGetsLittleMemory|TestSecondCloneIsOurChild|TestLinksInsideAreFollowed|TestFindProcessKnowsAPid|TestKernelTakesFilters)$'
mapfile -t packages < <(go list ./shim/... ./internal/... ./cni/... | grep -v '/shim/oci$')
env -u REQUIRE go test -exec "$run" -skip "$skip" "${packages[@]}"
echo "arm64: ${#packages[@]} packages"
