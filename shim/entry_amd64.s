#include "textflag.h"

#define SYS_madvise		28
#define SYS_statfs		137
#define SYS_execveat		322
#define SYS_open_tree		428
#define SYS_mount_setattr	442
#define MADV_NOHUGEPAGE		15
#define AT_FDCWD		-100
#define AT_EMPTY_PATH		0x1000
#define OPEN_TREE_FLAGS		0x80001	// OPEN_TREE_CLONE|OPEN_TREE_CLOEXEC
#define ST_RDONLY		1
#define MOUNT_ATTR_RDONLY	1
#define MOUNT_ATTR_SIZE_VER0	32

// The frame: a struct statfs, a struct mount_attr, and an empty path.
#define statfs_flags		80
#define attr			128
#define empty			160
#define frame			176

DATA self<>+0(SB)/8, $"/proc/se"
DATA self<>+8(SB)/8, $"lf/exe\x00\x00"
GLOBL self<>(SB), RODATA, $16

DATA procs<>+0(SB)/8, $"GOMAXPRO"
DATA procs<>+8(SB)/8, $"CS=2\x00\x00\x00\x00"
GLOBL procs<>(SB), RODATA, $16

// func entry()
TEXT ·entry(SB), NOSPLIT|NOFRAME, $0
	MOVQ	SP, R12			// argc, then argv and, behind its NULL, envp
	LEAQ	runtime·bss(SB), DI
	LEAQ	runtime·enoptrbss(SB), SI
	ANDQ	$~4095, DI
	SUBQ	DI, SI
	MOVQ	$MADV_NOHUGEPAGE, DX
	MOVQ	$SYS_madvise, AX
	SYSCALL
	MOVQ	0(R12), R13
	LEAQ	8(R12), R14
	MOVQ	$0x00ffffffffffffff, R8
	MOVQ	$0x0000ffffffffffff, R9
	MOVQ	$0x000000ffffffffff, R10
	MOVQ	$0x0000657461657263, R11 // create
	MOVQ	$0x0000007472617473, BX	// start
	MOVQ	$0x0000000063657865, DX	// exec
next:
	DECQ	R13
	JLE	begin
	ADDQ	$8, R14
	// Behind the shortest argument lie, at least, the name of the program's file
	// and a word of zeros: eight bytes can be read.
	MOVQ	(R14), AX
	MOVQ	(AX), AX
	CMPL	AX, $0x006e7572		// run
	JEQ	found
	MOVQ	AX, CX
	ANDQ	R8, CX
	CMPQ	CX, R11
	JEQ	found
	MOVQ	AX, CX
	ANDQ	R9, CX
	CMPQ	CX, BX
	JEQ	found
	ANDQ	R10, AX
	CMPQ	AX, DX
	JNE	next
found:
	SUBQ	$frame, SP
	MOVQ	$SYS_statfs, AX
	LEAQ	self<>(SB), DI
	MOVQ	SP, SI
	SYSCALL
	TESTQ	AX, AX
	JNE	begin
	TESTQ	$ST_RDONLY, statfs_flags(SP)
	JNE	begin
	MOVQ	$SYS_open_tree, AX
	MOVQ	$AT_FDCWD, DI
	LEAQ	self<>(SB), SI
	MOVQ	$OPEN_TREE_FLAGS, DX
	SYSCALL
	TESTQ	AX, AX
	JLT	begin
	MOVQ	AX, R13
	XORL	AX, AX
	MOVQ	$MOUNT_ATTR_RDONLY, attr(SP)
	MOVQ	AX, (attr+8)(SP)
	MOVQ	AX, (attr+16)(SP)
	MOVQ	AX, (attr+24)(SP)
	MOVQ	AX, empty(SP)
	MOVQ	$SYS_mount_setattr, AX
	MOVQ	R13, DI
	LEAQ	empty(SP), SI
	MOVQ	$AT_EMPTY_PATH, DX
	LEAQ	attr(SP), R10
	MOVQ	$MOUNT_ATTR_SIZE_VER0, R8
	SYSCALL
	TESTQ	AX, AX
	JNE	begin
	// The environment, copied from its end below the frame, with one more.
	LEAQ	empty(SP), SI
	MOVQ	0(R12), CX
	LEAQ	16(R12)(CX*8), R14
	MOVQ	R14, R15
last:
	MOVQ	(R15), AX
	ADDQ	$8, R15
	TESTQ	AX, AX
	JNE	last
copy:
	SUBQ	$8, R15
	PUSHQ	(R15)
	CMPQ	R15, R14
	JNE	copy
	LEAQ	procs<>(SB), AX
	PUSHQ	AX
	MOVQ	$SYS_execveat, AX
	MOVQ	R13, DI
	LEAQ	8(R12), DX
	MOVQ	SP, R10
	MOVQ	$AT_EMPTY_PATH, R8
	SYSCALL
begin:
	MOVQ	R12, SP
	JMP	_rt0_amd64_linux(SB)
