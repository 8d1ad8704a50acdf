#!/usr/bin/env bash
# Builds the two binaries into bin/: static, without paths of the machine.
# GOOS and GOARCH are Go's; BIN is another directory.
set -euo pipefail
cd "$(dirname "$0")/.."
export CGO_ENABLED=0
bin=${BIN:-bin}
# Without the machine that runs plugins compiled to WASM: it costs each daemon a MiB.
go build -trimpath -tags nri_no_wasm -ldflags '-s -w' -o "$bin/longshore" .
# Go 1.26's collector keeps its marks in the last page of each span of small
# objects. A shim has many spans with one object or two: without it, each shim
# has some 70 KiB less to itself. A Go that does not know the switch builds
# without it.
if GOEXPERIMENT=nogreenteagc go list runtime >/dev/null 2>&1; then export GOEXPERIMENT=nogreenteagc; fi
# It is entered before Go's runtime: shim/entry.go.
go build -trimpath -ldflags '-s -w -E main.entry' -o "$bin/longshore-shim" ./shim
