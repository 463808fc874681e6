package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"testing"

	miekg "github.com/miekg/dns"
)

// BenchmarkRespond is what a query costs between the sockets, when its answer is known.
func BenchmarkRespond(b *testing.B) {
	for _, instances := range []int{10, 1000} {
		for _, qtype := range []uint16{miekg.TypeA, miekg.TypeSRV} {
			b.Run(fmt.Sprintf("%s/%d", miekg.TypeToString[qtype], instances), func(b *testing.B) {
				s, w := newTestServer(b, many(b, instances))
				w.c.pick = random
				r := newRequest("big.service.regd.", qtype)
				r.msg.SetEdns0(1232, false)
				packet, err := r.msg.Pack()
				if err != nil {
					b.Fatal(err)
				}
				b.ReportAllocs()
				for b.Loop() {
					respond(b, s, w, packet, r)
				}
			})
		}
	}
}

// BenchmarkTranslate is what the first query after a change of the service costs more.
func BenchmarkTranslate(b *testing.B) {
	for _, instances := range []int{10, 1000} {
		for _, qtype := range []uint16{miekg.TypeA, miekg.TypeSRV} {
			b.Run(fmt.Sprintf("%s/%d", miekg.TypeToString[qtype], instances), func(b *testing.B) {
				n := many(b, instances)
				s, _ := newTestServer(b, n)
				st := n.state.Load()
				b.ReportAllocs()
				for b.Loop() {
					if a, _ := s.translator.translate(st, s.domains[0], "big.service", qtype, source{}); len(a.records) != instances {
						b.Fatalf("%d records", len(a.records))
					}
				}
			})
		}
	}
}

// BenchmarkAbsent is what a name costs that does not exist.
func BenchmarkAbsent(b *testing.B) {
	s, w := newTestServer(b, newWorld(b))
	r := newRequest("a.b.c.nope.service.regd.", miekg.TypeA)
	packet, err := r.msg.Pack()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		respond(b, s, w, packet, r)
	}
}

// BenchmarkDNSPerf has dnsperf (Debian: dnsperf) ask over UDP, in turns with the plainest server that the library can be made to be,
// which gives the question back: x/echo is the ratio of their rates. Run it with -benchtime 1x.
func BenchmarkDNSPerf(b *testing.B) {
	dnsperf, err := exec.LookPath("dnsperf")
	if err != nil {
		b.Skip("there is no dnsperf")
	}
	for _, instances := range []int{10, 1000} {
		n := many(b, instances)
		for _, qtype := range []string{"A", "SRV"} {
			b.Run(fmt.Sprintf("%s/%d", qtype, instances), func(b *testing.B) {
				ours, echo := start(b, n).Addr(), startEcho(b)
				for b.Loop() {
					const turns = 5
					var rate, ceiling float64
					for range turns {
						ceiling += perform(b, dnsperf, echo, qtype) / turns
						rate += perform(b, dnsperf, ours, qtype) / turns
					}
					b.ReportMetric(rate, "queries/s")
					b.ReportMetric(rate/ceiling, "x/echo")
				}
			})
		}
	}
}

func startEcho(b *testing.B) net.Addr {
	b.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	server := &miekg.Server{PacketConn: conn, Handler: miekg.HandlerFunc(func(w miekg.ResponseWriter, q *miekg.Msg) {
		m := new(miekg.Msg)
		m.SetReply(q)
		_ = w.WriteMsg(m)
	})}
	started := make(chan struct{})
	server.NotifyStartedFunc = func() { close(started) }
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.ActivateAndServe() })
	<-started
	b.Cleanup(func() {
		_ = server.ShutdownContext(context.Background())
		serving.Wait()
	})
	return conn.LocalAddr()
}

var queriesPerSecond = regexp.MustCompile(`Queries per second:\s+([\d.]+)`)

// perform returns the queries a second that were answered, for a second.
func perform(b *testing.B, dnsperf string, at net.Addr, qtype string) float64 {
	b.Helper()
	questions := filepath.Join(b.TempDir(), "questions")
	if err := os.WriteFile(questions, []byte("big.service.regd "+qtype+"\n"), 0o600); err != nil {
		b.Fatal(err)
	}
	host, port, _ := net.SplitHostPort(at.String())
	out, err := exec.Command(dnsperf, "-s", host, "-p", port, "-d", questions, "-l", "1", "-c", "8", "-q", "100", "-e").CombinedOutput()
	found := queriesPerSecond.FindSubmatch(out)
	if err != nil || found == nil {
		b.Fatal(errors.Join(err, fmt.Errorf("dnsperf said:\n%s", out)))
	}
	rate, err := strconv.ParseFloat(string(found[1]), 64)
	if err != nil {
		b.Fatal(err)
	}
	return rate
}
