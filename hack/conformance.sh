#!/usr/bin/env bash
# Runs critest against a private daemon and compares with the known failures.
# The last line counts: "critest: P passed, F failed, S skipped".
set -euo pipefail
cd "$(dirname "$0")/.."
hack/build.sh
cd test/conformance
exec go run . -bin ../../bin "$@"
