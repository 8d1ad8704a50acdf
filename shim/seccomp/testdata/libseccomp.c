/*
 * Reads seccomp profiles from standard input and writes the program that
 * libseccomp makes of each to standard output: its length in bytes as a 32-bit
 * number, then the program. A length of 0xffffffff and an errno stand for a
 * profile that libseccomp refuses.
 *
 *   filter ACTION               begins a profile; actions are SECCOMP_RET_* numbers
 *   arch TOKEN                  AUDIT_ARCH_* with libseccomp's bits; the first is the machine's own
 *   rule ACTION NAME N {ARGUMENT OPERATOR VALUE MASKED}*N
 *   name NAME                   answers 1 if libseccomp knows the call, else 0, without a profile
 *   end                         ends a profile
 */
#include <errno.h>
#include <inttypes.h>
#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void put(uint32_t n)
{
	if (fwrite(&n, sizeof n, 1, stdout) != 1)
		exit(1);
}

static void answer(scmp_filter_ctx ctx, int err)
{
	static char buf[1 << 20];
	FILE *tmp = tmpfile();
	size_t n = 0;

	if (tmp == NULL)
		exit(1);
	if (err == 0)
		err = seccomp_export_bpf(ctx, fileno(tmp));
	if (err == 0) {
		rewind(tmp);
		n = fread(buf, 1, sizeof buf, tmp);
		put(n);
		if (fwrite(buf, 1, n, stdout) != n)
			exit(1);
	} else {
		put(UINT32_MAX);
		put(-err);
	}
	fclose(tmp);
	fflush(stdout);
}

static int add_rule(scmp_filter_ctx ctx)
{
	struct scmp_arg_cmp args[6];
	uint32_t action, count;
	char name[64];
	int nr;

	if (scanf("%" SCNu32 " %63s %" SCNu32, &action, name, &count) != 3 || count > 6)
		exit(1);
	for (uint32_t i = 0; i < count; i++) {
		uint32_t op;

		if (scanf("%u %" SCNu32 " %" SCNu64 " %" SCNu64, &args[i].arg, &op, &args[i].datum_a, &args[i].datum_b) != 4)
			exit(1);
		args[i].op = op;
	}
	nr = seccomp_syscall_resolve_name(name);
	if (nr == __NR_SCMP_ERROR)
		return 0;
	return seccomp_rule_add_array(ctx, action, nr, count, args);
}

int main(void)
{
	scmp_filter_ctx ctx = NULL;
	char word[64];
	int err = 0, own = 0;

	while (scanf("%63s", word) == 1) {
		uint32_t n;

		if (strcmp(word, "name") == 0) {
			if (scanf("%63s", word) != 1)
				return 1;
			put(seccomp_syscall_resolve_name(word) != __NR_SCMP_ERROR);
			fflush(stdout);
		} else if (strcmp(word, "filter") == 0) {
			if (scanf("%" SCNu32, &n) != 1)
				return 1;
			ctx = seccomp_init(n);
			err = ctx == NULL ? -EINVAL : 0;
			own = 1;
		} else if (strcmp(word, "arch") == 0) {
			if (scanf("%" SCNu32, &n) != 1)
				return 1;
			if (err == 0 && seccomp_arch_exist(ctx, n) != 0)
				err = seccomp_arch_add(ctx, n);
			if (err == 0 && own && n != seccomp_arch_native())
				err = seccomp_arch_remove(ctx, SCMP_ARCH_NATIVE);
			own = 0;
		} else if (strcmp(word, "rule") == 0) {
			int got = add_rule(ctx);

			if (err == 0)
				err = got;
		} else if (strcmp(word, "end") == 0) {
			answer(ctx, err);
			if (ctx != NULL)
				seccomp_release(ctx);
			ctx = NULL;
		} else {
			return 1;
		}
	}
	return 0;
}
