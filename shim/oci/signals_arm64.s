#include "textflag.h"

#define SYS_write	64

// func onSignal()
// The kernel calls it with the signal's number in R0. It puts all registers back.
TEXT ·onSignal(SB), NOSPLIT|NOFRAME, $0
	SUB	$16, RSP
	MOVD	R0, (RSP)
	MOVW	·caught(SB), R0
	MOVD	RSP, R1			// its lowest byte
	MOVD	$1, R2
	MOVD	$SYS_write, R8
	SVC
	ADD	$16, RSP
	RET

// func handlerAddresses() (handler, restorer uintptr)
TEXT ·handlerAddresses(SB), NOSPLIT, $0-16
	MOVD	$·onSignal(SB), R0
	MOVD	R0, handler+0(FP)
	MOVD	ZR, restorer+8(FP)
	RET
