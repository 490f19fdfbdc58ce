package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// The whole machine is quiet when almost all its processor time is idle in several
// successive spans.
const (
	quietSpan    = time.Second
	quietAtLeast = 0.9
	quietSpans   = 3
)

// awaitQuiet waits until the machine is quiet, since it may still be busy from building
// the programs, but at most as long as patience.
func awaitQuiet() error {
	before, err := readMachine()
	for end, quiet := time.Now().Add(patience), 0; err == nil && quiet < quietSpans && time.Now().Before(end); {
		time.Sleep(quietSpan)
		var after machineTime
		after, err = readMachine()
		idle := after.idleSince(before)
		progress(fmt.Sprintf("waiting for a quiet machine: %.0f %% of its processor time is idle", 100*idle))
		before = after
		quiet++
		if idle < quietAtLeast {
			quiet = 0
		}
	}
	progress("")
	return err
}

// machineTime is the processor time of the whole machine so far, in clock ticks.
type machineTime struct{ idle, all int64 }

// idleSince returns the share of the time since before that was idle.
func (m machineTime) idleSince(before machineTime) float64 {
	return float64(m.idle-before.idle) / float64(max(1, m.all-before.all))
}

func readMachine() (machineTime, error) {
	raw, err := os.ReadFile("/proc/stat")
	if err != nil {
		return machineTime{}, err
	}
	return parseMachine(string(raw))
}

// parseMachine parses /proc/stat, whose first line is "cpu" with the ticks of user, nice,
// system, idle, iowait, irq, softirq and steal. Guests, which follow, are part of user.
func parseMachine(stat string) (m machineTime, err error) {
	line, _, _ := strings.Cut(stat, "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return m, fmt.Errorf("/proc/stat begins with %q", line)
	}
	for i, field := range fields[1:9] {
		ticks, e := strconv.ParseInt(field, 10, 64)
		err = errors.Join(err, e)
		m.all += ticks
		if i == 3 || i == 4 { // idle and iowait
			m.idle += ticks
		}
	}
	return m, err
}
