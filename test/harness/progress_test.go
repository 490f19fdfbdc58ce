package harness

import (
	"testing"
	"time"
)

// TestProgressInALog proves that a log gets a line at most once per [progressPause],
// whatever is reported in between.
func TestProgressInALog(t *testing.T) {
	began := time.Now()
	l := progressLog{at: began}
	for _, tc := range []struct {
		after time.Duration
		text  string
		want  bool
	}{
		{time.Second, "1 of 9", false},
		{progressPause, "", false},
		{progressPause, "5 of 9", true},
		{progressPause + time.Second, "6 of 9", false},
		{2 * progressPause, "9 of 9", true},
	} {
		if got := l.due(tc.text, began.Add(tc.after)); got != tc.want {
			t.Errorf("%q after %v: %v", tc.text, tc.after, got)
		}
	}
}
