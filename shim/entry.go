package main

// entry is where the kernel enters the program if the linker was told so
// (hack/build.sh); else it is the Go runtime's own entry. A command of an OCI
// runtime that starts processes in a container must run from a read-only view
// of the binary (CVE-2019-5736; see package oci, which makes sure). Seen to
// before the runtime begins, that costs an execve, and not the start of a Go
// program that ends at once. Which command it is can be told by any argument
// that is one of four words: where that is the value of something else, the
// program is started once more than need be. What is started has GOMAXPROCS=1 in
// its environment, which spares the runtime finding out and undoing how many
// threads it may have; package oci takes it out. Whatever fails here is left to
// package oci, which tries again and can say what failed.
func entry()
