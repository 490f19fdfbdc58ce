package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestWatchSleeps: the runtime's threads may oversleep, the first one may not, nor
// may delegates, which have the slack of the thread that starts them.
func TestWatchSleeps(t *testing.T) {
	first := strconv.Itoa(os.Getpid())
	before, err := os.ReadFile(slackOf(first))
	if err != nil {
		t.Fatal(err)
	}
	letWatchSleep()
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	oversleeping := 0
	for _, thread := range threads {
		slack, err := os.ReadFile(slackOf(thread.Name()))
		if os.IsPermission(err) {
			t.Skip("the timer slack of a thread is nobody's to read without CAP_SYS_NICE")
		}
		if err != nil {
			t.Fatal(err)
		}
		switch text := strings.TrimSpace(string(slack)); {
		case thread.Name() == first && text != string(before[:len(before)-1]):
			t.Errorf("%s: the first thread has %s ns, and had %s", filepath.Base(os.Args[0]), text, before)
		case thread.Name() != first && text == watchSlack:
			oversleeping++
		}
	}
	if oversleeping == 0 {
		t.Error("no thread may oversleep")
	}
}
