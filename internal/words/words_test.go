package words

import "testing"

func TestCount(t *testing.T) {
	for n, want := range map[int]string{0: "0 sandboxes", 1: "1 sandbox", 2: "2 sandboxes", -1: "-1 sandboxes"} {
		if got := Count(n, "sandbox", "sandboxes"); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
