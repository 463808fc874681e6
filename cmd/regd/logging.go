package main

import (
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/lmittmann/tint"
)

// Values of --log-format.
const (
	logAuto = "auto"
	logText = "text"
	logJSON = "json"
)

// newLogger makes the logger of a node: readable on a terminal, JSON lines elsewhere. kept gets the lines as well, as JSON, unless it is nil.
func (a *app) newLogger(w io.Writer, level, format string, kept *lastLines) (*slog.Logger, error) {
	var least slog.Level
	if err := least.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("log level %q: %w", level, err)
	}
	shown := a.logHandler(w, least, format)
	if kept == nil {
		return slog.New(shown), nil
	}
	return slog.New(slog.NewMultiHandler(shown, slog.NewJSONHandler(kept, &slog.HandlerOptions{Level: least}))), nil
}

func (a *app) logHandler(w io.Writer, least slog.Level, format string) slog.Handler {
	if format == logAuto {
		format = logJSON
		if isTerminal(w) {
			format = logText
		}
	}
	if format == logJSON {
		return slog.NewJSONHandler(w, &slog.HandlerOptions{Level: least})
	}
	return tint.NewTextHandler(w, &tint.Options{
		Level: least, TimeFormat: time.StampMilli, NoColor: !bool(a.paintFor(w)),
	})
}
