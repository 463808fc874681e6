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

// newLogger makes the logger of a node: readable on a terminal, JSON lines elsewhere.
func (a *app) newLogger(w io.Writer, level, format string) (*slog.Logger, error) {
	var least slog.Level
	if err := least.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("log level %q: %w", level, err)
	}
	if format == logAuto {
		format = logJSON
		if isTerminal(w) {
			format = logText
		}
	}
	if format == logJSON {
		return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: least})), nil
	}
	return slog.New(tint.NewTextHandler(w, &tint.Options{
		Level: least, TimeFormat: time.StampMilli, NoColor: !bool(a.paintFor(w)),
	})), nil
}
