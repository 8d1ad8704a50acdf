#!/usr/bin/env bash
# tests.sh DIR: compiles into DIR every test binary that has tests which need
# root, with the binaries and the image that they start. DIR/list has a line for
# each: package, seconds it may take, arguments.
set -euo pipefail
dir=$(realpath -m "$1")
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
export CGO_ENABLED=0

rm -rf "$dir"
mkdir -p "$dir/bin"
BIN=$dir/bin hack/build.sh
go build -trimpath -o "$dir/bin/guest" ./hack/demo/guest
GOARCH='' go run ./hack/demo/pack "$dir/bin/guest" "$dir/image.tar"
install -m 755 "$here/run-tests" "$dir/run-tests"

# compile MODULE PACKAGE NAME [TESTS]
compile() {
	local to=$dir/$3
	mkdir -p "$to"
	(cd "$1" && go test -c -o "$to/$(basename "$2").test" "./$2")
	if [ -d "$1/$2/testdata" ]; then cp -a "$1/$2/testdata" "$to/"; fi
	# Its own programs, where a test would build them.
	if [ -d "$1/$2/testdata/probe" ]; then (cd "$1/$2" && go build -o "$to/probe" ./testdata/probe); fi
	local args=${ARGS:-}${4:+ -test.run=$4}
	# Comparisons that need no kernel.
	if [ "$3" = shim/seccomp ]; then args="-test.skip=SameVerdict|TreeEqualsReference $args"; fi
	# The kernel there is an older one itself; others are played on the host.
	if [ "$3" = shim/launch ]; then args="-test.skip=TestSuiteOnOlderKernels $args"; fi
	# Until something hangs; a busy host takes four times as long as an idle one.
	local seconds=900
	# What is long there and needs no other kernel: thousands of records,
	# megabytes through sockets, what plugins and registries are told.
	if [ "$3" = test/e2e ]; then seconds=1800 args="-test.skip=ManyContainers|TestScripts/(streams_big|plugin_|pull) $args"; fi
	echo "$3 $seconds $args" >>"$dir/list"
}

# Those whose tests depend on the kernel.
default="internal/binview internal/cgroup cni/nat cni/plugin images/unpack
	shim/client shim/keeper shim/launch shim/oci shim/seccomp test/e2e"
set -f # patterns of tests are no patterns of files
for entry in ${PACKAGES:-$default}; do
	package=${entry%%=*} tests=
	if [ "$package" != "$entry" ]; then tests=${entry#*=}; fi
	if [ "$package" = test/e2e ]; then
		compile test e2e test/e2e "$tests"
	else
		compile . "$package" "$package" "$tests"
	fi
done
