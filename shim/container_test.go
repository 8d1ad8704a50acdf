package main

import (
	"testing"

	"github.com/longshore/longshore/shim/api"
	"golang.org/x/sys/unix"
)

func TestOutOfMemoryIsToldFromAStop(t *testing.T) {
	killed := api.Exit{Code: 137, Signal: int(unix.SIGKILL)}
	for name, tt := range map[string]struct {
		exit  api.Exit
		sent  sentSignals
		kills uint64
		want  bool
	}{
		"killed":                         {killed, sentSignals{}, 1, true},
		"killed by someone":              {killed, sentSignals{}, 0, false},
		"gives up for its child":         {api.Exit{Code: 1}, sentSignals{}, 1, true},
		"does not mind":                  {api.Exit{}, sentSignals{}, 1, false},
		"crashes":                        {api.Exit{Code: 139, Signal: int(unix.SIGSEGV)}, sentSignals{}, 1, false},
		"stopped":                        {api.Exit{Code: 143, Signal: int(unix.SIGTERM)}, sentSignals{oomKills: 1}, 1, false},
		"stops itself as told":           {api.Exit{Code: 143}, sentSignals{oomKills: 1}, 1, false},
		"killed by us":                   {killed, sentSignals{kill: true, oomKills: 1}, 1, false},
		"killed while it was to stop":    {killed, sentSignals{oomKills: 1}, 2, true},
		"killed just before it was told": {killed, sentSignals{oomKills: 1}, 1, true},
		"gives up while it is to stop":   {api.Exit{Code: 1}, sentSignals{oomKills: 1}, 2, true},
	} {
		if got := tt.sent.explain(tt.exit, tt.kills); got != tt.want {
			t.Errorf("%s: out of memory is %v", name, got)
		}
	}
}
