#!/usr/bin/env bash
# programs.sh DIR PROGRAM...: adds to a root directory programs of the host with
# their libraries.
set -euo pipefail
dir=$(realpath "$1")
shift
export PATH=$PATH:/usr/sbin:/sbin
for program in "$@"; do
	file=$(realpath "$(command -v "$program")")
	rm -f "$dir/usr/bin/$program" # an applet's link
	install -m 755 "$file" "$dir/usr/bin/$program"
	ldd "$file" | grep -o '/[^ ]*' | while read -r library; do
		mkdir -p "$dir$(dirname "$library")"
		[ -e "$dir$library" ] || cp -L "$library" "$dir$library"
	done
done
