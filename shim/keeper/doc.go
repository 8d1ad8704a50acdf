// Package keeper stands between the daemon and the shim of another runtime,
// one process per container: towards the daemon it answers as our own shim
// does, towards the other it speaks containerd's task API.
//
// A keeper owns what such a shim expects of somebody who stays: the reading
// ends of the stdio FIFOs, the CRI log, the exit record, the socket for events.
// So a daemon that is away holds up no container and loses no output, and adopts
// containers of any runtime in the same way.
//
// The bundle holds [api.ForeignFile] from before the shim is started until it
// has given back all that it held. Whoever finds one whose keeper is gone has
// [Service] Clean.
package keeper
