package cri

import "testing"

func TestFitSharesTheRoom(t *testing.T) {
	for _, test := range []struct{ out, err, wantOut, wantErr int }{
		{0, 0, 0, 0}, {3, 4, 3, 4}, {100, 0, 10, 0}, {0, 100, 0, 10}, {100, 100, 5, 5}, {100, 2, 8, 2}, {2, 100, 2, 8}, {5, 5, 5, 5}, {6, 5, 5, 5},
	} {
		out, errOut := fit(make([]byte, test.out), make([]byte, test.err), 10)
		if len(out) != test.wantOut || len(errOut) != test.wantErr {
			t.Errorf("%d and %d bytes in 10: %d and %d, want %d and %d", test.out, test.err, len(out), len(errOut), test.wantOut, test.wantErr)
		}
	}
}
