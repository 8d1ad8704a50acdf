#include "textflag.h"

#define SYS_statfs		43
#define SYS_madvise		233
#define SYS_execveat		281
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
	MOVD	RSP, R19		// argc, then argv and, behind its NULL, envp
	MOVD	$runtime·bss(SB), R0
	MOVD	$runtime·enoptrbss(SB), R1
	AND	$~65535, R0
	SUB	R0, R1
	MOVD	$MADV_NOHUGEPAGE, R2
	MOVD	$SYS_madvise, R8
	SVC
	MOVD	0(R19), R20
	ADD	$8, R19, R21
	MOVD	$0x006e7572, R9		// run
	MOVD	$0x0000000063657865, R10 // exec
	MOVD	$0x0000007472617473, R11 // start
	MOVD	$0x0000657461657263, R12 // create
next:
	SUB	$1, R20
	CMP	$0, R20
	BLE	begin
	ADD	$8, R21
	// Behind the shortest argument lie, at least, the name of the program's file
	// and a word of zeros: eight bytes can be read.
	MOVD	(R21), R0
	MOVD	(R0), R0
	AND	$0xffffffff, R0, R1
	CMP	R9, R1
	BEQ	found
	AND	$0xffffffffff, R0, R1
	CMP	R10, R1
	BEQ	found
	AND	$0xffffffffffff, R0, R1
	CMP	R11, R1
	BEQ	found
	AND	$0xffffffffffffff, R0, R1
	CMP	R12, R1
	BNE	next
found:
	SUB	$frame, RSP
	MOVD	RSP, R22
	MOVD	$SYS_statfs, R8
	MOVD	$self<>(SB), R0
	MOVD	R22, R1
	SVC
	CBNZ	R0, begin
	MOVD	statfs_flags(R22), R1
	TBNZ	$0, R1, begin		// ST_RDONLY
	MOVD	$SYS_open_tree, R8
	MOVD	$AT_FDCWD, R0
	MOVD	$self<>(SB), R1
	MOVD	$OPEN_TREE_FLAGS, R2
	SVC
	TBNZ	$63, R0, begin
	MOVD	R0, R20
	MOVD	$MOUNT_ATTR_RDONLY, R1
	MOVD	R1, attr(R22)
	MOVD	ZR, (attr+8)(R22)
	MOVD	ZR, (attr+16)(R22)
	MOVD	ZR, (attr+24)(R22)
	MOVD	ZR, empty(R22)
	MOVD	$SYS_mount_setattr, R8
	ADD	$empty, R22, R1
	MOVD	$AT_EMPTY_PATH, R2
	ADD	$attr, R22, R3
	MOVD	$MOUNT_ATTR_SIZE_VER0, R4
	SVC
	CBNZ	R0, begin
	// The environment, copied from its end below the frame, with one more.
	MOVD	0(R19), R3
	LSL	$3, R3
	ADD	$16, R3
	ADD	R19, R3, R23
	MOVD	R23, R3
last:
	MOVD	(R3), R0
	ADD	$8, R3
	CBNZ	R0, last
	SUB	R23, R3, R4
	ADD	$8+15, R4		// the one more, and what keeps the stack aligned
	AND	$~15, R4
	MOVD	RSP, R0
	SUB	R4, R0
	MOVD	R0, RSP
	MOVD	$procs<>(SB), R1
	MOVD	R1, (R0)
	ADD	$8, R0, R5
copy:
	MOVD	(R23), R1
	MOVD	R1, (R5)
	ADD	$8, R23
	ADD	$8, R5
	CMP	R3, R23
	BNE	copy
	MOVD	$SYS_execveat, R8
	MOVD	R0, R3
	MOVD	R20, R0
	ADD	$empty, R22, R1
	ADD	$8, R19, R2
	MOVD	$AT_EMPTY_PATH, R4
	SVC
begin:
	MOVD	R19, RSP
	JMP	_rt0_arm64_linux(SB)
