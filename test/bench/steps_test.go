package main

import (
	"strings"
	"testing"
	"time"
)

// TestPartsOfACall proves how the parts in the plugin's log, and the rest of the
// whole, add up.
func TestPartsOfACall(t *testing.T) {
	p := &parts{times: map[string]int{}}
	log := `{"msg":"a line before it"}
{"msg":"done","took":"5ms","cpu":"2ms","parts":{"plan":{"took":"1ms","times":1},"delegate":{"took":"1.5ms","times":3}}}
`
	if err := p.add([]byte(log), 2*time.Millisecond, 8*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]float64{"plan": 1, "delegate": 1.5, partStart: 2, partElse: 2.5, partWhole: 8, partCPU: 2} {
		if got := p.calls[0][name]; got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	if p.times["delegate"] != 3 {
		t.Errorf("%v", p.times)
	}
	for _, whole := range []time.Duration{6, 7, 60} { // of the four calls, the middle two count
		if err := p.add([]byte(log), time.Millisecond, whole*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
	if m := p.means(); m[partWhole] != 7.5 || m[partStart] != 1 || m["plan"] != 1 || m[partOutside] != 1.5 {
		t.Errorf("%v", m)
	}
	var out strings.Builder
	r := &report{out: &out}
	r.addParts("ADD", p)
	if len(r.Figures) != 7 || !strings.Contains(out.String(), "delegate") {
		t.Errorf("%v\n%s", r.Figures, out.String())
	}
	if err := p.add([]byte(`{"msg":"failed"}`), 0, 0); err == nil {
		t.Error("a failed call is counted")
	}
}
