package main

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// TestWatchSleeps proves that the runtime's monitor thread may oversleep, and that the
// first thread may not, and hence neither may delegates, which inherit its slack.
func TestWatchSleeps(t *testing.T) {
	slack := func(thread string) string {
		text, err := os.ReadFile(slackOf(thread))
		if os.IsPermission(err) {
			t.Skip("the timer slack of another thread is nobody's to read without CAP_SYS_NICE")
		}
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(text))
	}
	first := strconv.Itoa(os.Getpid())
	before := slack(first)
	letWatchSleep()
	watch, ok := watchThread()
	if !ok || slack(watch) != watchSlack {
		t.Errorf("thread %q may oversleep for %s ns", watch, slack(watch))
	}
	if after := slack(first); after != before {
		t.Errorf("the first thread may oversleep for %s ns, and might for %s", after, before)
	}
}
