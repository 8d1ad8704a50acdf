// Package cri serves Kubernetes' container runtime interface, version 1: a
// gRPC request comes in, it is translated, the engine or the image store is
// called, and the answer is translated back. It decides nothing and remembers
// nothing; Kubernetes' words end here.
package cri
