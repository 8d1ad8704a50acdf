#!/usr/bin/env bash
# Runs the tests that depend on the kernel, and the scripts of test/e2e, on a
# virtual machine with cgroup v2 alone, every controller and Debian's kernel.
# PACKAGES="internal/cgroup test/e2e=TestScripts/oom" picks some, and some of their tests;
# ARGS are more arguments of all.
# The last line counts: "vm: P passed, F failed, S skipped".
set -euo pipefail
cd "$(dirname "$0")/.."
hack/need.sh qemu-system-x86_64:qemu-system-x86 mke2fs:e2fsprogs cpio:cpio modprobe:kmod busybox:busybox-static
export PATH=$PATH:/usr/sbin:/sbin
# Not every distribution has it; without, the scripts that need it are skipped.
hack/need.sh criu:criu || echo "vm: there is no criu to install"
vm=bin/vm
test/vm/kernel.sh "$vm/kernel" cloud-amd64
test/vm/tests.sh "$vm/tests"
test/vm/root.sh "$vm/root" "$vm/kernel"
# Busybox' tar has not the options that criu uses.
if command -v criu >/dev/null; then test/vm/programs.sh "$vm/root" criu tar gzip; fi
if [ -n "${SELINUX:-}" ]; then
	hack/need.sh secilc:secilc containerd-shim-runc-v2:containerd runc:runc
	test/vm/programs.sh "$vm/root" containerd-shim-runc-v2 runc
	test/vm/selinux.sh "$vm/root"
	export APPEND="security=selinux selinux=1 ${APPEND:-}"
fi
cp -al "$vm/tests/." "$vm/root/tests/"
test/vm/boot.sh "$vm/kernel" "$vm/root" "$vm/out" /usr/sbin/machine
exec test/vm/summary.sh "$vm/out" "$vm/tests/list"
