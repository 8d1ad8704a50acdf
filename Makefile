# Every target is a script in hack/, which can be run without make.
.PHONY: nightly all demo test race test-root units conformance conformance-oci callers bench bench-launch fuzz test-v2 test-systemd test-selinux test-arm64 test-arm64-vm

all:
	hack/build.sh
demo:
	hack/demo.sh
units test:
	hack/units.sh
race:
	CGO_ENABLED=1 go test -race ./...
test-root:
	hack/test.sh
conformance:
	hack/conformance.sh
conformance-oci:
	hack/conformance-oci.sh
callers:
	hack/callers.sh
bench:
	hack/bench.sh
bench-launch:
	hack/bench-launch.sh
fuzz:
	hack/fuzz.sh
test-v2:
	hack/test-v2.sh
test-systemd:
	hack/test-systemd.sh
test-selinux:
	hack/test-selinux.sh
test-arm64:
	hack/test-arm64.sh
test-arm64-vm:
	hack/test-arm64-vm.sh
nightly:
	hack/nightly.sh
