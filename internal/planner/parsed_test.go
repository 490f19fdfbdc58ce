package planner

import (
	"fmt"
	"strings"
	"testing"
)

// TestParsed: the same bytes are parsed once, what is wrong is not remembered, and
// a pod that selects ever new networks does not make the memory grow.
func TestParsed(t *testing.T) {
	var p Parsed
	config := func(raw string) string {
		c, err := p.config([]byte(raw))
		if err != nil {
			return err.Error()
		}
		return fmt.Sprintf("%p", c)
	}
	one := config(`{"name":"a","type":"x"}`)
	if again := config(`{"name":"a","type":"x"}`); again != one {
		t.Errorf("parsed again: %s, then %s", one, again)
	}
	if other := config(`{"name":"b","type":"x"}`); other == one {
		t.Error("another configuration is taken for the first")
	}
	for range 2 {
		if got := config(`{"name":"c"}`); !strings.Contains(got, "type") {
			t.Errorf("a plugin without type: %s", got)
		}
	}
	large := strings.Repeat("y", maxParsed/8)
	for i := range 100 {
		config(fmt.Sprintf(`{"type":"x","i":%d,"y":%q}`, i, large))
		if p.bytes > maxParsed {
			t.Fatalf("%d configurations of %d bytes are remembered", len(p.known), p.bytes)
		}
	}
	var none *Parsed
	if _, err := none.config([]byte(`{"type":"x"}`)); err != nil {
		t.Error(err)
	}
}
