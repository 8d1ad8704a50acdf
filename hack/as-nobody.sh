#!/usr/bin/env bash
# Runs a test binary as nobody: go test -exec hack/as-nobody.sh. What a unit
# test can only do as root is then seen. EMULATE names a program that runs it,
# for another architecture.
set -euo pipefail
dir=$(dirname "$1")
chmod o+x "$dir" "$(dirname "$dir")"
exec setpriv --reuid=65534 --regid=65534 --clear-groups -- ${EMULATE:+"$EMULATE"} "$@"
