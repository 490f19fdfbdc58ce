// Package logs makes the loggers of the programs, so that a line of each looks the
// same: as text or JSON, errors as their message, durations in units, and
// bytes, which are configurations, as the text that they are and not as numbers.
package logs

import (
	"encoding/json"
	"io"
	"log/slog"
)

// Formats of lines.
const (
	Text = "text"
	JSON = "json"
)

// maxBytes is how much of a value of bytes is logged.
const maxBytes = 1 << 10

// New returns a logger that writes to w what is of that level at least; format is
// Text or JSON.
func New(w io.Writer, format string, level slog.Leveler) *slog.Logger {
	options := &slog.HandlerOptions{Level: level, ReplaceAttr: readable}
	if format == JSON {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// readable makes values text that a handler would print as it likes: our errors
// are JSON objects too, with kinds as numbers.
func readable(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		return slog.String(a.Key, a.Value.Duration().String())
	}
	if a.Value.Kind() != slog.KindAny {
		return a
	}
	switch v := a.Value.Any().(type) {
	case error:
		return slog.String(a.Key, v.Error())
	case json.RawMessage:
		return slog.String(a.Key, short(v))
	case []byte:
		return slog.String(a.Key, short(v))
	}
	return a
}

func short(b []byte) string {
	if len(b) > maxBytes {
		return string(b[:maxBytes]) + "…"
	}
	return string(b)
}
