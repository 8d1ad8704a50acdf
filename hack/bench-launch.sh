#!/usr/bin/env bash
# How long a container takes to its first instruction, an exec, a delete: our
# launcher, crun and runc in turns, and the floor. hack/bench-launch.sh [-n ROUNDS]
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "$(id -u)" -ne 0 ]; then
	exec sudo --preserve-env=PATH "$0" "$@"
fi
hack/need.sh gcc:gcc crun:crun runc:runc strace:strace pkg-config:pkg-config \
	/usr/include/stdlib.h:libc6-dev /usr/include/seccomp.h:libseccomp-dev
mkdir -p bin
runc=v1.5.2 # Debian's is old
[ -x "bin/runc-$runc" ] || { GOBIN=$PWD/bin CGO_ENABLED=1 go install -tags seccomp "github.com/opencontainers/runc@$runc" && mv bin/runc "bin/runc-$runc"; }
[ -x bin/crun-sid/crun ] || hack/crun.sh sid bin/crun-sid
crun=$(bin/crun-sid/crun --version | awk 'NR == 1 {print $NF}')
export CGO_ENABLED=0
hack/build.sh
go test -c -o bin/launch.test ./shim/launch
gcc -O2 -static -nostdlib -ffreestanding -fno-stack-protector -o bin/clock test/bench-launch/testdata/clock.c
(cd test && go build -o ../bin/bench-launch ./bench-launch)
exec bin/bench-launch -shim bin/longshore-shim -helper bin/launch.test -clock bin/clock -peer "crun-$crun=bin/crun-sid/crun" -peer "runc-$runc=bin/runc-$runc" "$@"
