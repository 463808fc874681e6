package cluster

import (
	"context"
	"io"
	"log" //nolint:depguard // Part of hclog's interface.
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// raftLogger hands what raft logs to slog. Raft's routine messages are one level lower here: a healthy cluster's log at
// info is quiet.
//
// What it repeats (a peer that can't be reached, at each try) is said once in foldFor, with a count.
type raftLogger struct {
	log     *slog.Logger
	name    string
	implied []any
	folds   *folds // shared by all that were derived
}

func newRaftLogger(l *slog.Logger) hclog.Logger {
	return &raftLogger{log: l, folds: &folds{said: map[string]*fold{}}}
}

const (
	// foldFor is how long a repeated message is only counted.
	foldFor = 10 * time.Second
	// maxFolds bounds the messages that are remembered. Raft has fewer.
	maxFolds = 256
)

// folds remembers which messages were said of late.
type folds struct {
	mu   sync.Mutex
	said map[string]*fold
}

type fold struct {
	at       time.Time
	repeated int
}

// due tells whether a message is to be said now, and how often it was held back since it last was.
func (f *folds) due(msg string, now time.Time) (bool, int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	last := f.said[msg]
	if last != nil && now.Sub(last.at) < foldFor {
		last.repeated++
		return false, 0
	}
	if len(f.said) >= maxFolds {
		clear(f.said)
	}
	f.said[msg] = &fold{at: now}
	if last == nil {
		return true, 0
	}
	return true, last.repeated
}

// raftLevels maps raft's levels to ours.
func raftLevel(l hclog.Level) slog.Level {
	switch l {
	case hclog.Error:
		return slog.LevelWarn // Of raft's errors nearly all are a peer that can't be reached: the node itself goes on.
	case hclog.Warn:
		return slog.LevelInfo
	default:
		return slog.LevelDebug
	}
}

// Log implements hclog.Logger.
func (l *raftLogger) Log(level hclog.Level, msg string, args ...any) {
	ours := raftLevel(level)
	if ours > slog.LevelDebug {
		due, repeated := l.folds.due(msg, time.Now())
		if !due {
			return
		}
		if repeated > 0 {
			args = append(args[:len(args):len(args)], "repeated", repeated)
		}
	}
	l.log.Log(context.Background(), ours, msg, args...) //nolint:sloglint // The message is raft's.
}

// Trace implements hclog.Logger.
func (l *raftLogger) Trace(msg string, args ...any) { l.Log(hclog.Trace, msg, args...) }

// Debug implements hclog.Logger.
func (l *raftLogger) Debug(msg string, args ...any) { l.Log(hclog.Debug, msg, args...) }

// Info implements hclog.Logger.
func (l *raftLogger) Info(msg string, args ...any) { l.Log(hclog.Info, msg, args...) }

// Warn implements hclog.Logger.
func (l *raftLogger) Warn(msg string, args ...any) { l.Log(hclog.Warn, msg, args...) }

// Error implements hclog.Logger.
func (l *raftLogger) Error(msg string, args ...any) { l.Log(hclog.Error, msg, args...) }

// IsTrace implements hclog.Logger.
func (l *raftLogger) IsTrace() bool { return l.enabled(hclog.Trace) }

// IsDebug implements hclog.Logger.
func (l *raftLogger) IsDebug() bool { return l.enabled(hclog.Debug) }

// IsInfo implements hclog.Logger.
func (l *raftLogger) IsInfo() bool { return l.enabled(hclog.Info) }

// IsWarn implements hclog.Logger.
func (l *raftLogger) IsWarn() bool { return l.enabled(hclog.Warn) }

// IsError implements hclog.Logger.
func (l *raftLogger) IsError() bool { return l.enabled(hclog.Error) }

func (l *raftLogger) enabled(level hclog.Level) bool {
	return l.log.Enabled(context.Background(), raftLevel(level))
}

// ImpliedArgs implements hclog.Logger.
func (l *raftLogger) ImpliedArgs() []any { return l.implied }

// With implements hclog.Logger.
func (l *raftLogger) With(args ...any) hclog.Logger {
	return &raftLogger{log: l.log.With(args...), name: l.name, folds: l.folds, implied: append(l.implied[:len(l.implied):len(l.implied)], args...)}
}

// Name implements hclog.Logger.
func (l *raftLogger) Name() string { return l.name }

// Named implements hclog.Logger.
func (l *raftLogger) Named(name string) hclog.Logger { return l.ResetNamed(name) }

// ResetNamed implements hclog.Logger.
func (l *raftLogger) ResetNamed(name string) hclog.Logger {
	return &raftLogger{log: l.log, name: name, implied: l.implied, folds: l.folds}
}

// SetLevel implements hclog.Logger. The level is slog's to set.
func (l *raftLogger) SetLevel(hclog.Level) {}

// GetLevel implements hclog.Logger.
func (l *raftLogger) GetLevel() hclog.Level {
	for _, level := range []hclog.Level{hclog.Debug, hclog.Warn, hclog.Error} {
		if l.enabled(level) {
			return level
		}
	}
	return hclog.Off
}

// StandardLogger implements hclog.Logger.
func (l *raftLogger) StandardLogger(o *hclog.StandardLoggerOptions) *log.Logger {
	return log.New(l.StandardWriter(o), "", 0)
}

// StandardWriter implements hclog.Logger.
func (l *raftLogger) StandardWriter(*hclog.StandardLoggerOptions) io.Writer {
	return slog.NewLogLogger(l.log.Handler(), slog.LevelDebug).Writer()
}
