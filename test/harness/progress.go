package harness

import (
	"fmt"
	"os"
	"sync"
	"time"
)

// progressPause is how often a run says how far it is where nobody watches.
const progressPause = 15 * time.Second

// progressed is what was said so far.
var progressed = struct {
	sync.Mutex
	log progressLog
}{log: progressLog{at: time.Now()}}

// Progress says on standard error what a long run is at and how far it is: on a
// terminal in one line that the next text replaces and an empty one clears, in a log
// in a line of its own, a few times a minute.
func Progress(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if fi, err := os.Stderr.Stat(); err == nil && fi.Mode()&os.ModeCharDevice != 0 {
		fmt.Fprintf(os.Stderr, "\r\033[K%s", text)
		return
	}
	progressed.Lock()
	defer progressed.Unlock()
	if progressed.log.due(text, time.Now()) {
		fmt.Fprintln(os.Stderr, text)
	}
}

// progressLog is when the last line was written.
type progressLog struct{ at time.Time }

// due reports whether a text is to be written now, and takes it for written then.
func (l *progressLog) due(text string, now time.Time) bool {
	if text == "" || now.Sub(l.at) < progressPause {
		return false
	}
	l.at = now
	return true
}
