// Command regd is the whole of regd in one binary: the node that serves the registry, a local cluster to try it, and
// the commands with which services, consumers and operators use it.
//
// Each subcommand is a file with one constructor, newXxxCmd. What they share: app.go (the command tree), connect.go
// (which cluster), output.go and table.go (what is printed), failure.go and exit.go (what is said when it fails).
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// Set by the linker; see the Makefile.
var (
	version = "devel"
	commit  = "unknown"
	date    = "unknown"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // A second signal finds no handler: it ends the process at once.
	a := &app{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv, doors: doors,
		build: buildInfo{Version: version, Commit: commit, Date: date}.complete(),
	}
	os.Exit(a.run(ctx, os.Args[1:]))
}
