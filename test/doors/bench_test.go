package doors_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/regd-io/regd/client"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// fill registers as many instances of a service, each with a check that is told how it is.
func fill(b *testing.B, n *node, service string, instances int) {
	b.Helper()
	const atOnce = 32
	var wg sync.WaitGroup
	errs := make([]error, atOnce)
	for w := range atOnce {
		wg.Go(func() {
			for k := w; k < instances && errs[w] == nil; k += atOnce {
				_, errs[w] = n.client.RegisterDetached(b.Context(), &registryv1.Instance{
					Service: service, Id: fmt.Sprintf("i%d", k), Address: fmt.Sprintf("10.0.%d.%d", k/256, k%256), Ports: []*registryv1.Port{{Number: 80}},
					Checks: []*registryv1.Check{{
						Name: "up", Initial: registryv1.CheckStatus_CHECK_STATUS_PASSING,
						Kind: &registryv1.Check_Ttl{Ttl: &registryv1.TTLCheck{Ttl: durationpb.New(time.Hour)}},
					}},
				})
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		b.Fatal(err)
	}
}

// envEcho makes the test binary the echo of BenchmarkDNS, at an address.
const envEcho = "REGD_TEST_ECHO"

// echo is the plainest server that the library for DNS can be made to be: it gives the question back.
func echo(address string) error {
	server := &dns.Server{Addr: address, Net: "udp", Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(q)
		_ = w.WriteMsg(m)
	})}
	return server.ListenAndServe()
}

// BenchmarkDNS has dnsperf ask a node over UDP as fast as it answers, in turns with an echo that looks nothing up: x/echo is the ratio
// of their rates. Each is a process of its own, and dnsperf is a third: on a machine with few processors they share them.
func BenchmarkDNS(b *testing.B) {
	dnsperf := program(b, "dnsperf", "dnsperf")
	n := startNode(b, "dns")
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	ceiling := freeAddress(b)
	runWith(b, []string{envEcho + "=" + ceiling}, self)
	for _, instances := range []int{10, 1000} {
		service := fmt.Sprintf("s%d", instances)
		fill(b, n, service, instances)
		for _, qtype := range []string{"A", "SRV"} {
			b.Run(fmt.Sprintf("%s/%d", qtype, instances), func(b *testing.B) {
				for b.Loop() {
					const turns = 5
					var ours, bound []float64
					for range turns {
						bound = append(bound, perform(b, dnsperf, ceiling, service, qtype))
						ours = append(ours, perform(b, dnsperf, n.door, service, qtype))
					}
					slices.Sort(ours)
					slices.Sort(bound)
					b.ReportMetric(0, "ns/op") // It says nothing here.
					b.ReportMetric(ours[turns/2], "queries/s")
					b.ReportMetric(bound[turns/2], "echo/s")
					b.ReportMetric(ours[turns/2]/bound[turns/2], "x/echo")
				}
			})
		}
	}
}

var (
	queriesPerSecond = regexp.MustCompile(`Queries per second:\s+([\d.]+)`)
	queriesLost      = regexp.MustCompile(`Queries lost:\s+(\d+)`)
)

// perform returns how many queries were answered in a second.
func perform(b *testing.B, dnsperf, at, service, qtype string) float64 {
	b.Helper()
	questions := filepath.Join(b.TempDir(), "questions")
	if err := os.WriteFile(questions, []byte(service+".service.regd "+qtype+"\n"), 0o600); err != nil {
		b.Fatal(err)
	}
	host, port, _ := net.SplitHostPort(at)
	out, err := exec.Command(dnsperf, "-s", host, "-p", port, "-d", questions, "-l", "2", "-c", "8", "-q", "100", "-e").CombinedOutput()
	rate, lost := queriesPerSecond.FindSubmatch(out), queriesLost.FindSubmatch(out)
	if err != nil || rate == nil || lost == nil || string(lost[1]) != "0" {
		b.Fatalf("dnsperf: %v; it said:\n%s", err, out)
	}
	found, err := strconv.ParseFloat(string(rate[1]), 64)
	if err != nil {
		b.Fatal(err)
	}
	return found
}

// BenchmarkWaitingQueries has 10,000 blocking queries wait, a hundred for each of a hundred services, each with a connection of its
// own, and changes one service after the other. It tells what of the node's memory a query holds (rss: what the system counts;
// heap and stacks: what is in use after collections), and what a change costs: how many are woken, the node's time on the
// processor, and how long after it was acknowledged the last of the hundred has its answer.
func BenchmarkWaitingQueries(b *testing.B) {
	const queries, services = 10_000, 100
	n := startNode(b, "consul", "--max-connections", "11000", "--max-connections-per-address", "11000")
	for k := range services {
		fill(b, n, fmt.Sprintf("s%d", k), 1)
	}
	before := n.footprint(b)
	ctx, cancel := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	answers := make([]chan time.Time, services)
	for k := range answers {
		answers[k] = make(chan time.Time, queries/services)
	}
	for k := range queries {
		wg.Go(func() {
			if err := follow(ctx, n.door, k%services, answers[k%services]); err != nil && ctx.Err() == nil {
				b.Error(err)
			}
		})
	}
	b.Cleanup(func() { cancel(); wg.Wait() })
	settled := func() {
		eventually(b, func() string {
			if waiting := n.metric(b, "regd_consul_waiting"); waiting != queries {
				return fmt.Sprintf("%v queries wait", waiting)
			}
			return ""
		})
	}
	settled()
	held := n.footprint(b)
	woken, busy := n.metric(b, "regd_consul_wakes_total"), n.metric(b, "process_cpu_seconds_total")
	var last []time.Duration
	b.ResetTimer()
	changes := 0
	for ; b.Loop(); changes++ {
		k := changes % services
		status := registryv1.CheckStatus_CHECK_STATUS_CRITICAL
		if changes/services%2 == 1 {
			status = registryv1.CheckStatus_CHECK_STATUS_PASSING
		}
		if err := n.client.SetHealth(b.Context(), client.Key{Service: fmt.Sprintf("s%d", k), ID: "i0"}, "up", status, ""); err != nil {
			b.Fatal(err)
		}
		acked, at := time.Now(), time.Time{}
		for range queries / services {
			at = <-answers[k]
		}
		last = append(last, at.Sub(acked))
	}
	b.StopTimer()
	busy = n.metric(b, "process_cpu_seconds_total") - busy
	settled()
	slices.Sort(last)
	b.ReportMetric((held.rss-before.rss)/queries, "rss-B/query")
	b.ReportMetric((held.heap-before.heap)/queries, "heap-B/query")
	b.ReportMetric((held.stacks-before.stacks)/queries, "stack-B/query")
	b.ReportMetric((held.goroutines-before.goroutines)/queries, "goroutines/query")
	b.ReportMetric((n.metric(b, "regd_consul_wakes_total")-woken)/float64(changes), "wakes/change")
	b.ReportMetric(1e6*busy/float64(changes), "cpu-µs/change")
	b.ReportMetric(float64(last[len(last)/2].Microseconds()), "last-µs")
}

// follow makes one blocking query after the other and tells when each was answered, but for the first, which has no index.
func follow(ctx context.Context, at string, service int, answered chan<- time.Time) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", at)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	in := bufio.NewReaderSize(conn, 1024)
	for index := ""; ; {
		if _, err := fmt.Fprintf(conn, "GET /v1/health/service/s%d?index=%s HTTP/1.1\r\nHost: x\r\n\r\n", service, index); err != nil {
			return err
		}
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK {
			return errors.Join(fmt.Errorf("%s", resp.Status), err)
		}
		if index != "" {
			answered <- time.Now()
		}
		index = resp.Header.Get("X-Consul-Index")
	}
}

// footprint is what a node holds: bytes, and goroutines.
type footprint struct{ rss, heap, stacks, goroutines float64 }

// footprint has the node collect its garbage first. A stack that has become too large is halved by a collection.
func (n *node) footprint(b *testing.B) footprint {
	b.Helper()
	for range 5 {
		n.get(b, "/debug/pprof/heap?gc=1")
	}
	return footprint{
		n.metric(b, "process_resident_memory_bytes"), n.metric(b, "go_memstats_heap_alloc_bytes"),
		n.metric(b, "go_memstats_stack_inuse_bytes"), n.metric(b, "go_goroutines"),
	}
}

// get gets what the node says at its port for operations.
func (n *node) get(b *testing.B, path string) string {
	b.Helper()
	body, err := get(b.Context(), "http://"+n.ops+path)
	if err != nil {
		b.Fatal(err)
	}
	return body
}

// metric is the value of a metric without labels.
func (n *node) metric(b *testing.B, name string) float64 {
	b.Helper()
	for line := range strings.Lines(n.get(b, "/metrics")) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				b.Fatal(err)
			}
			return v
		}
	}
	b.Fatalf("there is no metric %s", name)
	return 0
}
