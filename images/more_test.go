package images

import (
	"time"
)

var fixedTime = time.Unix(1600000000, 0)
