#include "textflag.h"

#define SYS_write		1
#define SYS_rt_sigreturn	15

// func onSignal()
// The kernel calls it with the signal's number in DI. It puts all registers back.
TEXT ·onSignal(SB), NOSPLIT|NOFRAME, $0
	PUSHQ	DI
	MOVLQSX	·caught(SB), DI
	MOVQ	SP, SI			// its lowest byte
	MOVL	$1, DX
	MOVL	$SYS_write, AX
	SYSCALL
	POPQ	DI
	RET

TEXT restorer<>(SB), NOSPLIT|NOFRAME, $0
	MOVL	$SYS_rt_sigreturn, AX
	SYSCALL
	INT	$3			// not reached

// func handlerAddresses() (handler, restorer uintptr)
TEXT ·handlerAddresses(SB), NOSPLIT, $0-16
	LEAQ	·onSignal(SB), AX
	MOVQ	AX, handler+0(FP)
	LEAQ	restorer<>(SB), AX
	MOVQ	AX, restorer+8(FP)
	RET
