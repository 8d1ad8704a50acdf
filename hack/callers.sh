#!/usr/bin/env bash
# Docker and Podman drive bin/longshore-shim as their OCI runtime: run, exec,
# stop, logs, stats, pause, kill. Everything is in a network and a mount
# namespace of its own and below one directory. hack/callers.sh [docker|podman]
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "$(id -u)" -ne 0 ]; then
	exec sudo --preserve-env=PATH "$0" "$@"
fi
if [ "${CALLERS_INNER:-}" = "" ]; then
	hack/need.sh dockerd:docker.io podman:podman conmon:conmon busybox:busybox-static
	hack/build.sh
	CALLERS_INNER=1 exec unshare --net --mount --propagation private "$0" "$@"
fi

shim=$PWD/bin/longshore-shim
dir=$(mktemp -d /tmp/callers.XXXXXX)
ip link set lo up
mkdir "$dir/run" && mount --bind "$dir/run" /run # their sockets and state

daemons=()
finish() {
	status=$?
	[ "$status" -eq 0 ] || for log in "$dir"/*.log; do [ -e "$log" ] || continue; echo "== $log"; tail -n 25 "$log"; done
	for ((i = ${#daemons[@]} - 1; i >= 0; i--)); do
		kill "${daemons[i]}" 2>/dev/null || true
		wait "${daemons[i]}" 2>/dev/null || true
	done
	cd /
	while read -r mount; do umount -l "$mount"; done < <(awk -v dir="$dir/" 'index($5, dir) == 1 {print $5}' /proc/self/mountinfo | sort -r)
	umount -l /run || true
	rm -rf "$dir"
	for group in /sys/fs/cgroup/*/callers-$$* /sys/fs/cgroup/callers-$$*; do # the parent of all is nobody's
		[ ! -d "$group" ] || find "$group" -depth -type d -exec rmdir {} +
	done
	exit "$status"
}
trap finish EXIT

fail() { echo "callers: $*" >&2; exit 1; }
# same WHAT WANT GOT
same() { [ "$2" = "$3" ] || fail "$1: '$3', want '$2'"; }
# until_true SECONDS COMMAND...: asks again until a deadline.
until_true() {
	local late=$((SECONDS + $1))
	shift
	until "$@"; do
		[ "$SECONDS" -lt "$late" ] || fail "still not so: $*"
		read -rt 0.1 <> <(:) || true
	done
}

mkdir -p "$dir/root/bin" "$dir/root/proc" "$dir/root/etc"
cp "$(command -v busybox)" "$dir/root/bin/busybox"
for name in sh sleep echo cat true false id kill ps hostname; do ln -s busybox "$dir/root/bin/$name"; done
echo 'root:x:0:0::/:/bin/sh' >"$dir/root/etc/passwd"
tar -C "$dir/root" -cf "$dir/root.tar" .

# life CALLER...: what both command lines have in common.
life() {
	"$@" import "$dir/root.tar" busybox:test >/dev/null
	same "run" "hello" "$("$@" run --rm "${options[@]}" busybox:test echo hello)"
	local code=0
	"$@" run --rm "${options[@]}" busybox:test sh -c 'exit 7' || code=$?
	same "exit code" 7 "$code"
	code=0
	"$@" run --rm "${options[@]}" busybox:test /no/such 2>"$dir/missing" || code=$?
	[ "$code" = 127 ] || fail "exit code of a missing command: $code; $(cat "$dir/missing")"
	same "stdin" "fed" "$(echo fed | "$@" run -i --rm "${options[@]}" busybox:test cat)"
	same "user" "7" "$("$@" run --rm "${options[@]}" --user 7:8 busybox:test id -u)"
	same "limits" "ok" "$("$@" run --rm "${options[@]}" --memory 64m --cpus 0.5 --pids-limit 50 busybox:test echo ok)"
	"$@" run -d --name box "${options[@]}" busybox:test sh -c 'trap "echo bye; exit 3" TERM; echo up; while :; do sleep 0.1; done' >/dev/null
	until_true 20 says "$@"
	same "exec" "inside" "$("$@" exec box echo inside)"
	code=0
	"$@" exec box sh -c 'exit 5' || code=$?
	same "exit code of exec" 5 "$code"
	same "exec with stdin" "fed" "$(echo fed | "$@" exec -i box cat)"
	"$@" stats --no-stream --format '{{.Name}}' box >"$dir/stats"
	same "stats" box "$(cat "$dir/stats")"
	"$@" pause box >/dev/null
	same "paused" paused "$("$@" inspect --format '{{.State.Status}}' box)"
	"$@" unpause box >/dev/null
	"$@" top box >/dev/null
	"$@" stop -t 10 box >/dev/null
	same "exit code after stop" 3 "$("$@" inspect --format '{{.State.ExitCode}}' box)"
	"$@" logs box | grep -q bye || fail "logs: no bye"
	"$@" start box >/dev/null
	"$@" kill box >/dev/null
	until_true 20 ended "$@"
	same "exit code after kill" 137 "$("$@" inspect --format '{{.State.ExitCode}}' box)"
	"$@" rm box >/dev/null
}
says() { "$@" logs box | grep -q up; }
ended() { [ "$("$@" inspect --format '{{.State.Status}}' box)" = exited ]; }

with_docker() {
	dockerd --data-root "$dir/docker" --exec-root "$dir/docker-run" --pidfile "$dir/docker.pid" -H "unix://$dir/docker.sock" \
		--add-runtime longshore="$shim" --default-runtime longshore --iptables=false --ip6tables=false --bridge=none \
		--storage-driver vfs --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/callers-$$" >"$dir/dockerd.log" 2>&1 &
	daemons+=("$!")
	local docker=(docker -H "unix://$dir/docker.sock")
	until_true 30 test -S "$dir/docker.sock"
	options=(--network none)
	life "${docker[@]}"
	"${docker[@]}" run -d --name auto --restart on-failure:1 --network none busybox:test false >/dev/null
	"${docker[@]}" rm -f auto >/dev/null
	"${docker[@]}" build -q -t longshore:test . >/dev/null
	same "our own image" "$(bin/longshore version)" "$("${docker[@]}" run --rm --network none longshore:test version)"
	echo "docker: ok"
}

with_podman() {
	local podman=(podman --root "$dir/podman" --runroot "$dir/podman-run" --runtime "$shim" --cgroup-manager cgroupfs
		--storage-driver vfs --tmpdir "$dir/podman-tmp" --events-backend file)
	options=(--network none --cgroup-parent "/callers-$$")
	life "${podman[@]}"
	echo "podman: ok"
}

if [ $# -eq 0 ]; then set -- docker podman; fi
for caller in "$@"; do "with_$caller"; done
