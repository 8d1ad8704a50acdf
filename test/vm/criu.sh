#!/usr/bin/env bash
# criu.sh DIR: adds to a root directory the programs that a checkpoint needs,
# with their libraries: criu, and tar and gzip, by which it saves what a tmpfs
# holds. Busybox' tar has not the options that criu uses.
set -euo pipefail
dir=$(realpath "$1")
export PATH=$PATH:/usr/sbin:/sbin
for program in criu tar gzip; do
	file=$(realpath "$(command -v "$program")")
	rm -f "$dir/usr/bin/$program" # an applet's link
	install -m 755 "$file" "$dir/usr/bin/$program"
	ldd "$file" | grep -o '/[^ ]*' | while read -r library; do
		mkdir -p "$dir$(dirname "$library")"
		[ -e "$dir$library" ] || cp -L "$library" "$dir$library"
	done
done
