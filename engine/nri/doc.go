// Package nri lets plugins of the Node Resource Interface see and adjust pods
// and containers.
//
// A [Host] belongs to the engine, which tells it what happens; it relays that
// to the plugins through the interface's own library, one event and one plugin
// at a time, and gives back what they want changed. While no plugin is
// connected [Host.Active] is false and the engine asks for nothing else.
//
// Plugins are programs of the operator, but not trusted to be right: each call
// has a deadline, a plugin that misses it is dropped, and what it wants is
// bounded and checked before anything is done. The engine holds none of its
// locks and semaphores while [Host.Block] keeps plugins from joining and it
// acts on an answer, since another operation may wait for the same two.
package nri
