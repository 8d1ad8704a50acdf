//go:build embed_image

package main

import _ "embed" // for helloImage

// helloImage is the archive that command pack makes of the guest program.
//
//go:embed image.tar
var helloImage []byte
