// Package logs creates the loggers of the programs, so that their lines all look the
// same: text or JSON, errors as their message, durations with units, and bytes, which
// are configurations, as text instead of numbers.
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

// New returns a logger that writes records of that level and above to w. format is Text
// or JSON.
func New(w io.Writer, format string, level slog.Leveler) *slog.Logger {
	options := &slog.HandlerOptions{Level: level, ReplaceAttr: readable}
	if format == JSON {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// readable turns values into text that a handler would print in its own way: Manifold's
// errors, for example, are JSON objects too, with kinds as numbers.
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
