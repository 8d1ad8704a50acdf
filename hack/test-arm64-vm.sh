#!/usr/bin/env bash
# Runs what makes real containers on an emulated arm64 machine with Debian's kernel:
# the launcher's assembly, the entry before Go's runtime, seccomp filters, pods. PACKAGES
# and ARGS are those of hack/test-v2.sh. The last line counts: "vm: P passed, F
# failed, S skipped".
set -euo pipefail
cd "$(dirname "$0")/.."
hack/need.sh qemu-system-aarch64:qemu-system-arm mke2fs:e2fsprogs cpio:cpio modprobe:kmod busybox:busybox-static
export PATH=$PATH:/usr/sbin:/sbin GOARCH=arm64
default="internal/binview internal/cgroup shim/client shim/launch shim/oci shim/seccomp
	test/e2e=TestScripts/(container_life|exec|streams|security|userns|oom|resources|mounts|network|recovery)$"
export PACKAGES=${PACKAGES:-$default}
vm=bin/vm-arm64
test/vm/kernel.sh "$vm/kernel" cloud-arm64
test/vm/tests.sh "$vm/tests"
test/vm/root.sh "$vm/root" "$vm/kernel"
cp -al "$vm/tests/." "$vm/root/tests/"
test/vm/boot.sh "$vm/kernel" "$vm/root" "$vm/out" /usr/sbin/machine
exec test/vm/summary.sh "$vm/out" "$vm/tests/list"
