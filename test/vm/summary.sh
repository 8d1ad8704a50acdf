#!/usr/bin/env bash
# summary.sh OUTDIR LIST: counts what the machine's tests said, shows what failed, and
# ends with "vm: P passed, F failed, S skipped". A binary that ended badly
# without a failed test, or did not run at all, is a failure too.
set -euo pipefail
out=$1 list=$2
passed=0 failed=0 skipped=0
while read -r package _; do
	name=${package//\//_}
	log=$out/$name.log
	status=$(cat "$out/$name.status" 2>/dev/null || echo none)
	p=$(grep -c '^--- PASS' "$log" || true)
	f=$(grep -c '^--- FAIL' "$log" || true)
	s=$(grep -c '^--- SKIP' "$log" || true)
	if [ "$package" = test/e2e ]; then # one Go test, a subtest for each script
		p=$(grep -c '^    --- PASS' "$log" || true)
		f=$(grep -c '^    --- FAIL' "$log" || true)
		s=$(grep -c '^    --- SKIP' "$log" || true)
	fi
	if [ "$status" != 0 ] && [ "${f:-0}" -eq 0 ]; then f=1; fi
	if [ "${f:-0}" -ne 0 ]; then
		printf '%s: status %s\n' "$package" "$status"
		grep -aE -B2 -A12 '^ *--- FAIL|^panic|^SIGQUIT|^fatal error' "$log" | head -n 200 || true
	fi
	passed=$((passed + ${p:-0})) failed=$((failed + ${f:-0})) skipped=$((skipped + ${s:-0}))
done <"$list"
echo "vm: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
