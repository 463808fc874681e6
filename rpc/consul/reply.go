package consul

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
)

// reply answers with a value as JSON.
func reply(w *answer, code int, value any) error {
	body, err := json.Marshal(value)
	if w.pretty && err == nil {
		body, err = json.MarshalIndent(value, "", "    ")
	}
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	send(w, code, body)
	return nil
}

// send answers with JSON.
func send(w *answer, code int, body []byte) {
	setJSON(w)
	w.WriteHeader(code)
	_, _ = w.Write(body) // Who has gone needs no answer.
}

func setJSON(w *answer) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Vary", "Accept-Encoding")
}

// requestIDs gives each write an id under which it is applied once. An id belongs to one write at a time.
type requestIDs struct {
	mu   sync.Mutex
	free []*requestID
}

// requestID is a client of the state machine with one request at a time.
type requestID struct {
	client   string
	sequence uint64
}

func (p *requestIDs) take() *requestID {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.free); n > 0 {
		id := p.free[n-1]
		p.free = p.free[:n-1]
		return id
	}
	return &requestID{client: "consul-" + random()}
}

func (p *requestIDs) give(id *requestID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.free) < maxIdle {
		p.free = append(p.free, id)
	}
}

// next returns an id that no request had. Whoever had the last one has been answered.
func (id *requestID) next() *raftlogv1.RequestID {
	id.sequence++
	return &raftlogv1.RequestID{ClientId: id.client, Sequence: id.sequence, AnsweredBelow: id.sequence}
}

func random() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // It never fails.
	return hex.EncodeToString(b[:])
}

// metrics are those of a server.
type metrics struct {
	requests *prometheus.CounterVec
	seconds  prometheus.Histogram
	wakes    prometheus.Counter
}

func newMetrics() *metrics {
	return &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "regd_consul_requests_total", Help: "Number of requests of Consul's clients, by route and status code.",
		}, []string{"route", "code"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "regd_consul_request_seconds", Help: "Time to answer a request of a Consul client, without waiting for a change.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1, 5},
		}),
		wakes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "regd_consul_wakes_total", Help: "Number of times that a query of a Consul client waited and was woken by a change.",
		}),
	}
}

func (m *metrics) collectors(s *Server) []prometheus.Collector {
	return []prometheus.Collector{m.requests, m.seconds, m.wakes, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "regd_consul_waiting", Help: "Number of queries of Consul's clients that wait for a change.",
	}, func() float64 { return float64(len(s.waiters)) })}
}

func (m *metrics) observe(route string, code int, took time.Duration) {
	m.requests.WithLabelValues(route, fmt.Sprint(code)).Inc()
	if code < http.StatusInternalServerError {
		m.seconds.Observe(took.Seconds())
	}
}
