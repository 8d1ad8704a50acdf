package main

// entry is where the kernel enters the program if the linker was told so
// (hack/build.sh); else it is the Go runtime's own entry. A command of an OCI
// runtime that starts processes in a container must run from a read-only view
// of the binary (CVE-2019-5736; see package oci, which makes sure). Seen to
// before the runtime begins, that costs an execve, and not the start of a Go
// program that ends at once. Which command it is can be told by any argument
// that is one of four words: where that is the value of something else, the
// program is started once more than need be.
//
// What is started has GOMAXPROCS=2 in its environment, which spares the runtime
// finding a number; package oci takes it out. With one, each call that takes the
// kernel some 20 µs would cost the thread its place, and wake another that
// finds nothing to do.
//
// For every command, a shim that serves too, what the runtime keeps in zeroed
// data is kept out of huge pages: it touches some twenty pages of 32 MiB, and
// where one of 2 MiB came to lie there it was all the shim's.
//
// Whatever fails here is left to package oci, which tries again and can say what
// failed.
func entry()
