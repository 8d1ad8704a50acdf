package launch

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// olderEnv names what the kernel shall lack in a whole run of the tests.
const olderEnv = "LAUNCH_TEST_OLDER"

// olderKernels are the switches by what is missing. What needs a newer kernel
// is missing where more is.
var olderKernels = map[string][]*bool{
	"mounts onto detached trees, 6.15":   {&kernel.noDetachedTargets},
	"overlay layers by descriptor, 6.13": {&kernel.noDetachedTargets, &kernel.noOverlayFD},
	"mount_setattr, 5.12":                {&kernel.noDetachedTargets, &kernel.noOverlayFD, &kernel.noMountSetattr},
	"CLONE_INTO_CGROUP, 5.7":             {&kernel.noDetachedTargets, &kernel.noOverlayFD, &kernel.noMountSetattr, &kernel.noIntoCgroup},
	"memory shared with an exec":         {&kernel.noSharedMemory},
}

func init() {
	for _, flag := range olderKernels[os.Getenv(olderEnv)] {
		*flag = true
	}
}

// TestSuiteOnOlderKernels runs every other test again for each thing that an
// older kernel lacks.
func TestSuiteOnOlderKernels(t *testing.T) {
	needRoot(t)
	if testing.Short() || !mountsOntoDetached() {
		return // the kernel is one of them
	}
	for name := range olderKernels {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command("/proc/self/exe", "-test.skip", "^(TestSuiteOnOlderKernels|Fuzz)", "-test.short")
			cmd.Args[0] = os.Args[0]
			cmd.Env = append(os.Environ(), olderEnv+"="+name)
			if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), "no tests to run") {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
