/*
 * The program of the measured containers: its first instruction reads the
 * monotonic clock, and the nanoseconds go to standard output as eight bytes.
 * With an argument it then waits for ever. No C library: that would be most of
 * the time.
 */
#include <asm/unistd.h>

static long call(long nr, long a, long b, long c)
{
#if defined(__x86_64__)
	long ret;
	__asm__ volatile("syscall" : "=a"(ret) : "a"(nr), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
	return ret;
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = nr;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
	return x0;
#endif
}

__attribute__((used)) void begin(long *stack)
{
	long now[2];
	long nanoseconds;

	call(__NR_clock_gettime, 1, (long)now, 0);
	nanoseconds = now[0] * 1000000000 + now[1];
	call(__NR_write, 1, (long)&nanoseconds, 8);
	while (stack[0] > 1)
		call(__NR_ppoll, 0, 0, 0);
	call(__NR_exit_group, 0, 0, 0);
}

#if defined(__x86_64__)
__asm__(".globl _start\n_start: mov %rsp, %rdi\n and $-16, %rsp\n call begin\n");
#elif defined(__aarch64__)
__asm__(".globl _start\n_start: mov x0, sp\n bl begin\n");
#endif
