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
for pair in longshore:. guest:./hack/demo/guest; do
	go build -trimpath -o "$dir/bin/${pair%%:*}" "${pair#*:}"
done
go build -trimpath -ldflags '-E main.entry' -o "$dir/bin/longshore-shim" ./shim # as hack/build.sh does
go run ./hack/demo/pack "$dir/bin/guest" "$dir/image.tar"
install -m 755 "$here/run-tests" "$dir/run-tests"

# compile MODULE PACKAGE NAME
compile() {
	local to=$dir/$3
	mkdir -p "$to"
	(cd "$1" && go test -c -o "$to/$(basename "$2").test" "./$2")
	if [ -d "$1/$2/testdata" ]; then cp -a "$1/$2/testdata" "$to/"; fi
	# Its own programs, where a test would build them.
	if [ -d "$1/$2/testdata/probe" ]; then (cd "$1/$2" && go build -o "$to/probe" ./testdata/probe); fi
	local args=${ARGS:-}
	# That comparison needs a C compiler, and no kernel.
	# The document that has the diagram stays here.
	if [ "$3" = engine ]; then args="-test.skip=DiagramInTheDocument $args"; fi
	if [ "$3" = shim/seccomp ]; then args="-test.skip=SameVerdict $args"; fi
	local seconds=300
	# Lists of thousands of records and megabytes through sockets take minutes
	# there, and no other kernel.
	if [ "$3" = test/e2e ]; then seconds=900 args="-test.skip=ManyContainers|TestScripts/streams_big $args"; fi
	echo "$3 $seconds $args" >>"$dir/list"
}

# A package has tests that need root if they ask whether root was promised.
for package in ${PACKAGES:-$(grep -rl --include='*_test.go' '"REQUIRE"' -- internal shim cni images engine | xargs -n1 dirname | sort -u)}; do
	[ "$package" = test/e2e ] || compile . "$package" "$package"
done
case " ${PACKAGES:-test/e2e} " in *" test/e2e "*) compile test e2e test/e2e ;; esac
