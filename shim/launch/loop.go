package launch

// cloneLoop blocks all signals, calls clone3(2) with args, and restores the
// signal mask in the parent, where it returns the child's pid or an errno. For
// the clone alone, the thread's children go to the pid namespace r.join, unless
// that is -1, and then to r.own again: in between, no Go code runs that could
// move to another thread or start one, and no thread needs to be locked. The
// child carries out the program of r with registers only: it touches neither a
// stack nor Go's state, which is what makes it safe with and without CLONE_VM,
// and invisible to the race detector. It ends in execve or in exit_group.
//
//go:noescape
func cloneLoop(r *run, args *cloneArgs, size uintptr) (pid, errno uintptr)

// loopText gives the address and the length of the loop's code, the only text
// a waiting child needs mapped.
func loopText() (start, end uintptr)
