package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
)

// auditLog is where a node writes down who did what. A line is in the file when its call is answered; the file is only added
// to, so that it may be cut or moved by copying meanwhile.
type auditLog struct {
	log  *slog.Logger // nil: nothing is written
	file *os.File     // nil: none was opened
}

// openAudit opens the file of an audit log, "-" for stdout, "" for none. What it had stays.
func openAudit(path string, stdout io.Writer) (auditLog, error) {
	switch path {
	case "":
		return auditLog{}, nil
	case "-":
		return auditLog{log: slog.New(slog.NewJSONHandler(stdout, nil))}, nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return auditLog{}, &exitError{code: exitConfig, err: fmt.Errorf("--audit-log: %w", err), hint: "it needs a folder in which this user may write"}
	}
	return auditLog{log: slog.New(slog.NewJSONHandler(f, nil)), file: f}, nil
}

func (a auditLog) close() error {
	if a.file == nil {
		return nil
	}
	return a.file.Close()
}
