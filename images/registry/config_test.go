package registry

import (
	"log/slog"
	"testing"

	"github.com/distribution/reference"
)

// TestSetConfigCountsForRepositoriesToCome: those that are open go on as they
// are.
func TestSetConfigCountsForRepositoriesToCome(t *testing.T) {
	name, err := reference.ParseNormalizedNamed("example.com/a/b")
	if err != nil {
		t.Fatal(err)
	}
	c := New(Config{}, slog.New(slog.DiscardHandler))
	before, err := c.Repository(name, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.SetConfig(Config{"example.com": {Mirrors: []string{"http://127.0.0.1:5000"}}})
	after, err := c.Repository(name, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(before.sources) != 1 || len(after.sources) != 2 || after.sources[0].host != "127.0.0.1:5000" {
		t.Errorf("%d sources before, %d after", len(before.sources), len(after.sources))
	}
}
