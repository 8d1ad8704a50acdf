#!/usr/bin/env bash
# Measures pods through a CRI socket: hack/bench.sh [-endpoint SOCKET -image IMAGE ...]
# Without an endpoint a private daemon of ours is measured, one pod at a time
# and ten at a time.
set -euo pipefail
cd "$(dirname "$0")/.."
hack/build.sh
export CGO_ENABLED=0
go build -trimpath -o bin/guest ./hack/demo/guest
go run ./hack/demo/pack bin/guest bin/image.tar
(cd test && go build -o ../bin/bench ./bench)
if [ $# -gt 0 ]; then
	exec bin/bench -bin bin "$@"
fi
bin/bench -bin bin -c 1
bin/bench -bin bin -c 10
