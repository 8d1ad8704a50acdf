// Package engine runs the life of pods and containers: it decides, records,
// asks shims to act, and remembers.
//
// Every object has one record, a JSON file that is written before the act it
// announces and again when the act is confirmed. A daemon that dies at any
// point finds on its next start, in [Engine.Recover], what to adopt, to finish
// or to take back. An operation, once begun, is not bound to the caller's
// context: the caller stops waiting, the operation ends. Checkpoints alone are
// given up with their caller, who waits until all goes on again.
//
// Operations are keyed by identity. A second RunPod or CreateContainer for the
// same name, namespace, uid and attempt joins the first and gets its result.
//
// Lock order: Engine.mu, then Pod.mu or Container.mu, of which no two are held
// at once. Container.op and Pod.op serialise the operations on one object and
// are taken before any of them; who needs several Container.op takes them in the
// order of the ids.
package engine
