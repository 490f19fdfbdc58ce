package planner

import (
	"strings"
	"testing"
)

func TestTheNameOfADeviceInformationFile(t *testing.T) {
	if got, want := infoFile("default/fast", "c1", "net1"), "default-fast-c1_net1"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	seen := map[string]bool{}
	for _, c := range []struct{ network, id string }{
		{"default/" + strings.Repeat("a", 243), "c1"},
		{"default/" + strings.Repeat("a", 242) + "b", "c1"},
		{"default/" + strings.Repeat("a", 243), "c2"},
		{"default/fast", strings.Repeat("c", 240)},
		{"default/fast", strings.Repeat("c", 241)},
	} {
		file := infoFile(c.network, c.id, "net1")
		if len(file) > maxFileName || seen[file] || strings.Contains(file, "/") {
			t.Errorf("%q: %d bytes, seen before %v", file, len(file), seen[file])
		}
		seen[file] = true
	}
}
