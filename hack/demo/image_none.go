//go:build !embed_image

package main

// helloImage is empty in a build that carries no image; hack/demo.sh makes one
// that does.
var helloImage []byte
