package planner

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/manifold-cni/manifold/netattach"
)

// The same bytes are parsed once, errors are not remembered, and a pod that selects
// ever new networks does not make the memory grow.
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

// Pods that select a network at the same time share the parsed configuration, whoever
// was first.
func TestParsedAtOnce(t *testing.T) {
	var p Parsed
	got := make([]*netattach.Config, 16)
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() { got[i], _ = p.config([]byte(`{"name":"a","type":"x"}`)) })
	}
	wg.Wait()
	for i, c := range got {
		if c == nil || c != got[0] {
			t.Errorf("%d has %p, the first %p", i, c, got[0])
		}
	}
	if want := len(`{"name":"a","type":"x"}`); p.bytes != want {
		t.Errorf("%d bytes are counted, of one configuration of %d", p.bytes, want)
	}
}
