// Command canary sends a share of the calls to a new version of a service, and counts where they went. A version is what
// instances say under "version" in their metadata; client/balance has the policy (Split), client/regdhttp applies it.
//
// With a cluster from "make run", one old and one new instance of examples/http-service, and the canary:
//
//	go run ./examples/http-service -id old -version 1
//	go run ./examples/http-service -id new -version 2
//	go run ./examples/canary -config examples/canary/canary.json
//
// Whatever the numbers of instances are, the new version gets its share. When nobody serves one of the versions, the
// other gets all.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/balance"
	"github.com/regd-io/regd/client/discovery"
	"github.com/regd-io/regd/client/regdhttp"
)

// rollout is what the configuration file says.
type rollout struct {
	// Service that is called.
	Service string `json:"service"`
	// Version that is new.
	Version string `json:"version"`
	// Share of the calls that it gets, from 0 to 1.
	Share float64 `json:"share"`
}

func main() {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := run(log); err != nil {
		log.Error("canary failed", "error", err)
		os.Exit(1) //nolint:forbidigo // This is a command.
	}
}

func run(log *slog.Logger) (err error) {
	endpoints := flag.String("endpoint", "127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420", "`addresses` of regd nodes, by commas")
	config := flag.String("config", "canary.json", "`file` that says which version gets which share")
	calls := flag.Int("calls", 1000, "how often to call")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	plan, err := readRollout(*config)
	if err != nil {
		return err
	}

	c, err := client.New(strings.Split(*endpoints, ","), client.WithLogger(log))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	d, err := discovery.New(c, discovery.WithLogger(log))
	if err != nil {
		return err
	}
	defer d.Close()
	t, err := regdhttp.New(d, regdhttp.WithBalancing(
		balance.Split(plan.Share, balance.HasMetadata("version", plan.Version), balance.LeastRequests()),
	))
	if err != nil {
		return err
	}
	defer t.Close()

	web := &http.Client{Transport: t, Timeout: 5 * time.Second}
	count := map[string]int{}
	for range *calls {
		version, err := call(ctx, web, "http://"+plan.Service+".service/hello")
		if err != nil {
			return err
		}
		count[version]++
	}
	for _, version := range slices.Sorted(maps.Keys(count)) {
		fmt.Fprintf(os.Stdout, "version %s: %d of %d calls\n", version, count[version], *calls)
	}
	return nil
}

// readRollout reads the configuration. Fields that it does not know are errors: a misspelt share must not be 0.
func readRollout(path string) (rollout, error) {
	file, err := os.Open(path)
	if err != nil {
		return rollout{}, err
	}
	defer file.Close() //nolint:errcheck // It was only read.
	var plan rollout
	decoder := json.NewDecoder(file)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&plan); err != nil {
		return rollout{}, fmt.Errorf("read %s: %w", path, err)
	}
	return plan, nil
}

// call returns the version of the instance that answers.
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
	if _, err := io.Copy(io.Discard, resp.Body); err != nil { // Read to the end, the connection can be used again.
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	return resp.Header.Get("Version"), nil
}
