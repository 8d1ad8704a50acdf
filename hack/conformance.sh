#!/usr/bin/env bash
# Runs critest against a private daemon and compares with the known failures.
# The last line counts: "critest: P passed, F failed, S skipped".
set -euo pipefail
cd "$(dirname "$0")/.."
hack/build.sh
cd test/conformance
go build -o bin/conformance .
exec bin/conformance -bin ../../bin "$@"
