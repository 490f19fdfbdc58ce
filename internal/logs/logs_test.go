package logs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/manifold-cni/manifold/internal/cnierr"
)

// Both formats render values alike, and no bytes as numbers.
func TestValues(t *testing.T) {
	for _, format := range []string{Text, JSON} {
		t.Run(format, func(t *testing.T) {
			var b bytes.Buffer
			log := New(&b, format, slog.LevelInfo)
			log.Debug("not this")
			log.With("verb", "ADD").Info("planned", "took", 1500*time.Microsecond, "count", 3,
				"err", cnierr.New("find pod", cnierr.TryAgain, "gone").About(cnierr.Subject{Pod: "shop/web"}),
				"wrapped", fmt.Errorf("outer: %w", cnierr.New("x", cnierr.IO, "y")),
				"config", json.RawMessage(`{"type":"bridge"}`), "raw", []byte("plain"), "long", bytes.Repeat([]byte("x"), 5000))
			line := b.String()
			for _, want := range []string{"ADD", "1.5ms", "pod shop/web: find pod: gone", "outer: x: y", "bridge", "plain"} {
				if !strings.Contains(line, want) {
					t.Errorf("lacks %q: %s", want, line)
				}
			}
			if strings.Contains(line, "123 34") || strings.Contains(line, `"kind"`) || len(line) > 2000 || strings.Count(line, "\n") != 1 {
				t.Error(line)
			}
			if valid := json.Valid(b.Bytes()); valid != (format == JSON) {
				t.Errorf("JSON: %v", valid)
			}
		})
	}
}
