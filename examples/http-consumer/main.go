// Command http-consumer calls an HTTP service by its name. The URL is http://hello.service/hello; which instances that
// means is known from memory, kept current by a watch (client/discovery), and a call goes to one of them
// (client/regdhttp).
//
// With a cluster from "make run" and some instances of examples/http-service:
//
//	go run ./examples/http-consumer -cache /tmp/hello-cache
//
// Each line tells what was answered, and where the list of instances comes from. Stop the whole cluster: "live" becomes
// "cached", and the calls go on. Start the consumer anew while the cluster is away: "file".
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/discovery"
	"github.com/regd-io/regd/client/regdhttp"
)

func main() {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := run(log); err != nil {
		log.Error("consumer failed", "error", err)
		os.Exit(1) //nolint:forbidigo // This is a command.
	}
}

func run(log *slog.Logger) (err error) {
	endpoints := flag.String("endpoint", "127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420", "`addresses` of regd nodes, by commas")
	service := flag.String("service", "hello", "`name` of the service")
	cache := flag.String("cache", "", "`folder` that keeps the list of instances across restarts; empty: none")
	every := flag.Duration("every", 500*time.Millisecond, "time between two calls")
	attempts := flag.Int("attempts", 3, "instances that a call is tried on at most; 1 shows that a clean stop needs no second one")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	c, err := client.New(strings.Split(*endpoints, ","), client.WithLogger(log))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	options := []discovery.Option{discovery.WithLogger(log)}
	if *cache != "" {
		options = append(options, discovery.WithFile(*cache))
	}
	d, err := discovery.New(c, options...)
	if err != nil {
		return err
	}
	defer d.Close()
	t, err := regdhttp.New(d, regdhttp.WithAttempts(*attempts))
	if err != nil {
		return err
	}
	defer t.Close()
	view, err := d.Service(*service) // Shares the transport's watch. Here it only serves to show where the list is from.
	if err != nil {
		return err
	}
	defer view.Close()

	web := &http.Client{Transport: t, Timeout: 5 * time.Second}
	var calls, failed int
	tick := time.NewTicker(*every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			log.Info("stopped", "calls", calls, "failed", failed)
			return nil
		case <-tick.C:
		}
		// A signal ends the loop, not the call that is under way.
		answer, err := call(context.WithoutCancel(ctx), web, "http://"+*service+".service/hello")
		calls++
		if err != nil {
			failed++
			log.Warn("call failed", "error", err)
			continue
		}
		v, err := view.View(ctx)
		if err != nil {
			continue // The list has become empty meanwhile, or ctx has ended.
		}
		fmt.Fprintf(os.Stdout, "%s (%s list of %d)\n", answer, v.Source, len(v.Healthy))
	}
}

// call returns what one instance answers.
func call(ctx context.Context, web *http.Client, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return "", err
	}
	resp, err := web.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1024))
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	return strings.TrimSpace(string(body)), nil
}
