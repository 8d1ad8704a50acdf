#include "textflag.h"

// Offsets of run and op (program_unsafe.go), and the values of its flags.
#define run_first	0
#define run_end		8
#define run_mask	16
#define run_failed	24
#define run_errno	32
#define run_join	40
#define run_own		48
#define run_joined	56
#define run_left	64
#define op_nr		0
#define op_args		8
#define op_flags	56
#define op_res		64
#define op_other	72
#define op_size		80
#define maxErrno	0xfffffffffffff001

#define SYS_rt_sigprocmask	14
#define SYS_exit_group		231
#define SYS_setns		308
#define SYS_clone3		435
#define CLONE_NEWPID		0x20000000

// func cloneLoop(r *run, args *cloneArgs, size uintptr) (pid, errno uintptr)
TEXT ·cloneLoop(SB), NOSPLIT, $8-40
	MOVQ	r+0(FP), BX
	MOVQ	args+8(FP), R12
	MOVQ	size+16(FP), R13
	MOVQ	$SYS_rt_sigprocmask, AX
	MOVQ	$2, DI			// SIG_SETMASK
	LEAQ	run_mask(BX), SI
	LEAQ	old-8(SP), DX
	MOVQ	$8, R10
	SYSCALL
	MOVQ	run_join(BX), DI
	CMPQ	DI, $-1
	JEQ	clone
	MOVQ	$SYS_setns, AX
	MOVQ	$CLONE_NEWPID, SI
	SYSCALL
	MOVQ	AX, run_joined(BX)
	TESTQ	AX, AX
	JNZ	cloned
clone:
	MOVQ	$SYS_clone3, AX
	MOVQ	R12, DI
	MOVQ	R13, SI
	SYSCALL
	TESTQ	AX, AX
	JZ	child
	CMPQ	run_join(BX), $-1
	JEQ	cloned
	MOVQ	AX, R12
	MOVQ	$SYS_setns, AX
	MOVQ	run_own(BX), DI
	MOVQ	$CLONE_NEWPID, SI
	SYSCALL
	MOVQ	AX, run_left(BX)
	MOVQ	R12, AX
cloned:
	MOVQ	AX, R12
	MOVQ	$SYS_rt_sigprocmask, AX
	MOVQ	$2, DI
	LEAQ	old-8(SP), SI
	XORL	DX, DX
	MOVQ	$8, R10
	SYSCALL
	XORL	AX, AX
	CMPQ	R12, $maxErrno
	JCS	parent
	MOVQ	R12, AX
	NEGQ	AX
	XORL	R12, R12
parent:
	MOVQ	R12, pid+24(FP)
	MOVQ	AX, errno+32(FP)
	RET

	// From here on BX is the run and R12 the operation. The end is read each
	// time: the parent appends operations while the child waits at a gate.
child:
	MOVQ	run_first(BX), R12
next:
	CMPQ	R12, run_end(BX)
	JCC	done
again:
	MOVQ	op_nr(R12), AX
	MOVQ	(op_args+0)(R12), DI
	MOVQ	(op_args+8)(R12), SI
	MOVQ	(op_args+16)(R12), DX
	MOVQ	(op_args+24)(R12), R10
	MOVQ	(op_args+32)(R12), R8
	MOVQ	(op_args+40)(R12), R9
	SYSCALL
	MOVQ	AX, op_res(R12)
	MOVQ	op_flags(R12), CX
	CMPQ	AX, $maxErrno
	JCC	failed
	TESTQ	$2, CX			// opMiddle
	JZ	notMiddle
	TESTQ	AX, AX
	JNZ	middle
notMiddle:
	TESTQ	$8, CX			// opNotZero
	JZ	mayBeZero
	TESTQ	AX, AX
	JZ	closed
mayBeZero:
	TESTQ	$16, CX			// opRooted
	JZ	advance
	MOVQ	(op_args+0)(R12), DX
	MOVBLZX	(DX), DX
	CMPL	DX, $0x2f		// '/'
	JNE	unreachable
advance:
	ADDQ	$op_size, R12
	JMP	next
failed:
	NEGQ	AX
	TESTQ	$4, CX			// opRetry
	JZ	noRetry
	CMPQ	AX, $4			// EINTR
	JEQ	again
noRetry:
	TESTQ	$1, CX			// opIgnore
	JNZ	advance
	MOVQ	op_other(R12), DX
	TESTQ	DX, DX
	JZ	report
	MOVQ	op_res(DX), DX
	CMPQ	DX, $maxErrno
	JCS	advance
	JMP	report
closed:
	MOVQ	$32, AX			// EPIPE
	JMP	report
unreachable:
	MOVQ	$2, AX			// ENOENT
report:
	MOVQ	AX, run_errno(BX)
	MOVQ	R12, run_failed(BX)
done:
	MOVQ	$SYS_exit_group, AX
	MOVQ	$125, DI
	SYSCALL
	JMP	done
middle:
	MOVQ	$SYS_exit_group, AX
	XORL	DI, DI
	SYSCALL
	JMP	middle

// func loopText() (start, end uintptr)
TEXT ·loopText(SB), NOSPLIT, $0-16
	LEAQ	·cloneLoop(SB), AX
	MOVQ	AX, start+0(FP)
	LEAQ	·loopText(SB), AX
	MOVQ	AX, end+8(FP)
	RET
