// Command leader-worker runs as often as you like, and works once: the processes elect a leader, which works until it
// stops or can no longer prove that it leads, and then the next one does (client/election).
//
// With a cluster from "make run", in two terminals:
//
//	go run ./examples/leader-worker -id a
//	go run ./examples/leader-worker -id b
//
// Stop the one that works with Ctrl-C: it resigns, and the other works at once. Kill it with SIGKILL: the other works
// once the session has run out (-ttl). Each leader has a fencing token larger than those before. What the work writes to
// has to be given the token and to refuse smaller ones than it has seen: that is the last word, for a leader that was
// paused in the middle of a write and does not know yet that it leads no more.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/election"
)

func main() {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := run(log); err != nil {
		log.Error("worker failed", "error", err)
		os.Exit(1) //nolint:forbidigo // This is a command.
	}
}

func run(log *slog.Logger) (err error) {
	endpoints := flag.String("endpoint", "127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420", "`addresses` of regd nodes, by commas")
	name := flag.String("election", "examples/worker", "`name` of the election")
	id := flag.String("id", "a", "what this process calls itself")
	ttl := flag.Duration("ttl", 5*time.Second, "how long leadership survives a leader that falls silent, from 2s on")
	every := flag.Duration("every", time.Second, "time between two steps of the work")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	c, err := client.New(strings.Split(*endpoints, ","), client.WithLogger(log), client.WithName(*id), client.WithSessionTTL(*ttl))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()

	log = log.With("id", *id)
	log.Info("standing for election", "election", *name)
	err = election.New(c, *name).Run(ctx, []byte(*id), func(ctx context.Context, l *election.Leadership) error {
		log.Info("elected", "token", l.Token())
		work(ctx, *id, l.Token(), *every)
		log.Info("leading no more", "token", l.Token(), "reason", context.Cause(ctx))
		return nil
	})
	if err == nil {
		log.Info("stopped")
	}
	return err
}

// work is what one process shall do at a time, until ctx ends. Here a step is a line; in earnest it is a write to
// something that compares the token with the largest it has seen.
func work(ctx context.Context, id string, token uint64, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for step := 1; ctx.Err() == nil; step++ {
		fmt.Fprintf(os.Stdout, "token %d: %s does step %d\n", token, id, step)
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}
