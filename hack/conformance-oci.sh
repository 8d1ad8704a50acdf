#!/usr/bin/env bash
# Runs the validation programs of opencontainers/runtime-tools against the shim
# as an OCI runtime and compares with the known failures.
# The last line counts: "runtime-tools: P passed, F failed, K known".
set -euo pipefail
cd "$(dirname "$0")/.."
hack/build.sh
cd test/conformance/oci
exec go run . -shim ../../../bin/longshore-shim "$@"
