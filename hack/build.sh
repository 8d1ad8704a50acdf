#!/usr/bin/env bash
# Builds the two binaries into bin/: static, without paths of the machine.
set -euo pipefail
cd "$(dirname "$0")/.."
export CGO_ENABLED=0
go build -trimpath -ldflags '-s -w' -o bin/longshore .
go build -trimpath -ldflags '-s -w' -o bin/longshore-shim ./shim
