package main

import (
	"io"
	"log/slog"

	"gopkg.in/natefinch/lumberjack.v2"

	"github.com/manifold-cni/manifold/internal/logs"
	"github.com/manifold-cni/manifold/internal/netconf"
)

// levels maps the values of the key logLevel, which are those of Multus. A failed verb
// logs an error; every verb logs at verbose.
var levels = map[string]slog.Level{
	"panic": slog.LevelError + 4, "error": slog.LevelError, "warning": slog.LevelWarn, "verbose": slog.LevelInfo, "debug": slog.LevelDebug,
}

// newLog returns the log that the configuration asks for, and a function that closes it.
// A file that cannot be written loses its lines: no pod fails because of its log.
func newLog(conf *netconf.Conf, stderr io.Writer) (*slog.Logger, func()) {
	var to []io.Writer
	if conf.LogToStderr {
		to = append(to, stderr)
	}
	done := func() {}
	if conf.LogFile != "" {
		o := conf.LogOptions
		file := &lumberjack.Logger{Filename: conf.LogFile, MaxSize: o.MaxSize, MaxAge: o.MaxAge, MaxBackups: o.MaxBackups, Compress: o.Compress}
		to, done = append(to, file), func() { _ = file.Close() }
	}
	return logs.New(io.MultiWriter(to...), conf.LogFormat, levels[conf.LogLevel]), done
}
