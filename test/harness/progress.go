package harness

import (
	"fmt"
	"os"
	"sync"
	"time"
)

// progressPause is the minimum time between two lines of progress in a log.
const progressPause = 15 * time.Second

// progressed is the state shared by all calls of [Progress].
var progressed = struct {
	sync.Mutex
	log progressLog
}{log: progressLog{at: time.Now()}}

// Progress reports on standard error how far a long run is. On a terminal it uses one
// line that the next text replaces and an empty text clears. In a log it writes a line
// a few times a minute.
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

// progressLog holds the time when the last line was written.
type progressLog struct{ at time.Time }

// due tells whether text should be written now, and if so records now as the time of
// the last line.
func (l *progressLog) due(text string, now time.Time) bool {
	if text == "" || now.Sub(l.at) < progressPause {
		return false
	}
	l.at = now
	return true
}
