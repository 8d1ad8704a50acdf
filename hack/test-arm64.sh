#!/usr/bin/env bash
# Builds both binaries for arm64 and runs the unit tests that qemu-user can: it
# knows neither clone3 nor the mount calls since 5.2, so that what makes real
# containers is left to a machine. The last line says what was run.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v qemu-aarch64-static >/dev/null; then
	sudo=sudo
	if [ "$(id -u)" -eq 0 ]; then sudo=; fi
	$sudo apt-get update -qq
	$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends qemu-user-static
fi
export GOARCH=arm64 CGO_ENABLED=0
go vet ./...
mkdir -p bin/arm64
go build -trimpath -ldflags '-s -w' -o bin/arm64/longshore .
go build -trimpath -ldflags '-s -w' -o bin/arm64/longshore-shim ./shim
emulate=$(command -v qemu-aarch64-static)
if [ "$(id -u)" -eq 0 ]; then emulate="$PWD/hack/as-nobody.sh $emulate"; fi
# shellcheck disable=SC2086 # packages are words
env -u REQUIRE go test -exec "$emulate" ${PACKAGES:-./...}
