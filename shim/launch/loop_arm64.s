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

#define SYS_exit_group		94
#define SYS_rt_sigprocmask	135
#define SYS_setns		268
#define SYS_clone3		435
#define CLONE_NEWPID		0x20000000

// func cloneLoop(r *run, args *cloneArgs, size uintptr) (pid, errno uintptr)
TEXT ·cloneLoop(SB), NOSPLIT, $16-40
	MOVD	r+0(FP), R19
	MOVD	args+8(FP), R20
	MOVD	size+16(FP), R21
	MOVD	$2, R0			// SIG_SETMASK
	ADD	$run_mask, R19, R1
	MOVD	$old-8(SP), R2
	MOVD	$8, R3
	MOVD	$SYS_rt_sigprocmask, R8
	SVC
	MOVD	run_join(R19), R0
	CMN	$1, R0
	BEQ	clone
	MOVD	$CLONE_NEWPID, R1
	MOVD	$SYS_setns, R8
	SVC
	MOVD	R0, run_joined(R19)
	CBNZ	R0, cloned
clone:
	MOVD	R20, R0
	MOVD	R21, R1
	MOVD	$SYS_clone3, R8
	SVC
	CBZ	R0, child
	MOVD	run_join(R19), R1
	CMN	$1, R1
	BEQ	cloned
	MOVD	R0, R20
	MOVD	run_own(R19), R0
	MOVD	$CLONE_NEWPID, R1
	MOVD	$SYS_setns, R8
	SVC
	MOVD	R0, run_left(R19)
	MOVD	R20, R0
cloned:
	MOVD	R0, R20
	MOVD	$2, R0
	MOVD	$old-8(SP), R1
	MOVD	$0, R2
	MOVD	$8, R3
	MOVD	$SYS_rt_sigprocmask, R8
	SVC
	MOVD	$0, R1
	CMN	$4095, R20
	BCC	parent
	NEG	R20, R1
	MOVD	$0, R20
parent:
	MOVD	R20, pid+24(FP)
	MOVD	R1, errno+32(FP)
	RET

	// From here on R19 is the run and R20 the operation. The end is read each
	// time: the parent appends operations while the child waits at a gate.
child:
	MOVD	run_first(R19), R20
next:
	MOVD	run_end(R19), R21
	CMP	R21, R20
	BCS	done
again:
	MOVD	(op_args+0)(R20), R0
	MOVD	(op_args+8)(R20), R1
	MOVD	(op_args+16)(R20), R2
	MOVD	(op_args+24)(R20), R3
	MOVD	(op_args+32)(R20), R4
	MOVD	(op_args+40)(R20), R5
	MOVD	op_nr(R20), R8
	SVC
	MOVD	R0, op_res(R20)
	MOVD	op_flags(R20), R9
	CMN	$4095, R0
	BCS	failed
	TBZ	$1, R9, notMiddle	// opMiddle
	CBNZ	R0, middle
notMiddle:
	TBZ	$3, R9, mayBeZero	// opNotZero
	CBZ	R0, closed
mayBeZero:
	TBZ	$4, R9, advance		// opRooted
	MOVD	(op_args+0)(R20), R10
	MOVBU	(R10), R10
	CMP	$0x2f, R10		// '/'
	BNE	unreachable
advance:
	ADD	$op_size, R20
	B	next
failed:
	NEG	R0, R0
	TBZ	$2, R9, noRetry		// opRetry
	CMP	$4, R0			// EINTR
	BEQ	again
noRetry:
	TBNZ	$0, R9, advance		// opIgnore
	MOVD	op_other(R20), R10
	CBZ	R10, report
	MOVD	op_res(R10), R10
	CMN	$4095, R10
	BCC	advance
	B	report
closed:
	MOVD	$32, R0			// EPIPE
	B	report
unreachable:
	MOVD	$2, R0			// ENOENT
report:
	MOVD	R0, run_errno(R19)
	MOVD	R20, run_failed(R19)
done:
	MOVD	$125, R0
	MOVD	$SYS_exit_group, R8
	SVC
	B	done
middle:
	MOVD	$0, R0
	MOVD	$SYS_exit_group, R8
	SVC
	B	middle

// func loopText() (start, end uintptr)
TEXT ·loopText(SB), NOSPLIT, $0-16
	MOVD	$·cloneLoop(SB), R0
	MOVD	R0, start+0(FP)
	MOVD	$·loopText(SB), R0
	MOVD	R0, end+8(FP)
	RET
