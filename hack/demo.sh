#!/usr/bin/env bash
# Builds everything and runs the demonstration. It needs Go and root (or sudo).
set -euo pipefail
cd "$(dirname "$0")/.."
export CGO_ENABLED=0
hack/build.sh
go build -trimpath -o bin/guest ./hack/demo/guest
go run ./hack/demo/pack bin/guest hack/demo/image.tar
go build -trimpath -tags embed_image -o bin/demo ./hack/demo
if [ "$(id -u)" -ne 0 ]; then
	exec sudo bin/demo -bin bin "$@"
fi
exec bin/demo -bin bin "$@"
