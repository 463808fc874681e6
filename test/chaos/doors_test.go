package chaos_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	miekg "github.com/miekg/dns"

	"github.com/regd-io/regd/test/chaos/internal/nodes"
)

// TestForeignClientsOutliveTheLeader: clients of Consul wait for changes of services and others ask DNS for them, both at all
// nodes, when the leader is killed and, later, comes back. No answer is one that was never true, no index runs back wherever
// the client goes on, DNS is answered all the time, and within three seconds of the kill each client of Consul has been told
// of a change that was made after it.
//
// CHAOS_QUERIES is how many queries wait, ten for each service; CHAOS_RATE how many are made by DNS in a second, A and SRV in
// turns; CHAOS_ROUNDS how many leaders are killed.
func TestForeignClientsOutliveTheLeader(t *testing.T) {
	const goOn = 3 * time.Second
	queries, asked := number(t, "CHAOS_QUERIES", 50), number(t, "CHAOS_RATE", 50)
	f := startForeign(t, queries, asked)
	time.Sleep(1500 * time.Millisecond)
	for range rounds(t, 1) {
		old := f.c.Leader()
		f.killed = append(f.killed, time.Now())
		old.Kill()
		for _, s := range f.scribes {
			s.hurry.Store(int64(len(s.services) + 1)) // One may be under way.
		}
		time.Sleep(goOn + time.Second)
		old.Start()
		f.c.Ready()
		time.Sleep(1500 * time.Millisecond)
	}
	f.stop()
	f.judgeWaiters(goOn)
	f.judgeAskers()
	verify(t, f.c)
}

// number is a number that the environment may say.
func number(t *testing.T, name string, otherwise int) int {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 10 {
		t.Fatalf("%s=%q: must be a number, 10 or more", name, s)
	}
	return n
}

// foreign is a cluster with clients that speak foreign protocols.
type foreign struct {
	t        *testing.T
	c        *nodes.Cluster
	consul   []string // addresses of the door, by node
	dns      []string
	services []*chronicle
	scribes  []*scribe
	waiters  []*waiter
	askers   *askers
	killed   []time.Time
	stop     func() // waits for everybody
}

func startForeign(t *testing.T, queries, asked int) *foreign {
	t.Helper()
	const perService, writes = 10, 100 // writes in a second
	f := &foreign{t: t}
	f.c = nodes.StartWith(t, 3, nodes.Options{Env: func(n *nodes.Node) []string {
		k, _ := strconv.Atoi(strings.TrimPrefix(n.Name, "n"))
		for len(f.consul) < k {
			f.consul, f.dns = append(f.consul, nodes.FreeAddress(t)), append(f.dns, nodes.FreeAddress(t))
		}
		return []string{
			"REGD_CONSUL_LISTEN=" + f.consul[k-1], "REGD_DNS_LISTEN=" + f.dns[k-1], "REGD_DNS_MAX_STALE=" + dnsBound.String(),
			fmt.Sprint("REGD_MAX_CONNECTIONS_PER_ADDRESS=", 2*queries+200), // All are of this machine.
		}
	}})
	count := max(queries/perService, 8)
	scribes := max(count/4, 8)
	for k := range count {
		f.services = append(f.services, &chronicle{name: fmt.Sprintf("s%d", k), quiet: k%8 == 7})
	}
	for part := range slices.Chunk(f.services, (count+scribes-1)/scribes) {
		f.scribes = append(f.scribes, newScribe(t, len(f.scribes), f.c.Addresses(), part, time.Duration(scribes)*time.Second/writes))
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg, late sync.WaitGroup
	for _, s := range f.scribes {
		wg.Go(func() { s.run(ctx) })
	}
	web := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: queries}}
	listening, deafen := context.WithCancel(t.Context())
	for k := range queries {
		w := &waiter{
			f: f, web: web, number: k, service: k % len(f.services), node: k % len(f.consul), stale: k/len(f.services)%2 == 0,
			forgetful: k/len(f.services)%4 < 2,
			rng:       rand.New(rand.NewPCG(2, uint64(k))),
		}
		f.waiters = append(f.waiters, w)
		late.Go(func() { w.run(listening) })
	}
	f.askers = &askers{f: f, rate: asked}
	wg.Go(func() { f.askers.run(ctx) })
	f.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		time.Sleep(time.Second) // The clients have that long to be told of the last writes.
		deafen()
		late.Wait()
		web.CloseIdleConnections()
	})
	t.Cleanup(f.stop)
	return f
}

// waiter is a client of Consul with a blocking query, behind a load balancer: the next query may go to another node, and does
// so after an error.
type waiter struct {
	f                     *foreign
	web                   *http.Client
	number, service, node int
	stale                 bool
	forgetful             bool // after an error, and at another node, it asks as if for the first time
	rng                   *rand.Rand
	answers               []told
	errors                map[string]int
}

// told is the answer to a query.
type told struct {
	node            int
	given           uint64 // index that the query had
	index, revision uint64
	content         string
	sent, got       time.Time
	wait            time.Duration
}

// run makes one query after the other until ctx ends.
func (w *waiter) run(ctx context.Context) {
	w.errors = map[string]int{}
	index := uint64(0)
	for ctx.Err() == nil {
		wait := (time.Second + time.Duration(w.rng.Int64N(int64(2*time.Second)))).Truncate(time.Millisecond) // The unit that is asked in.
		got, err := w.ask(ctx, index, wait)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			w.errors[err.Error()]++
			w.node = (w.node + 1) % len(w.f.consul)
			if w.forgetful { // As Consul's watch plans are.
				index = 0
			}
			select {
			case <-time.After(20 * time.Millisecond):
			case <-ctx.Done():
			}
		default:
			w.answers = append(w.answers, got)
			index = got.index
			if w.rng.IntN(4) == 0 {
				w.node = w.rng.IntN(len(w.f.consul))
				if w.forgetful {
					index = 0
				}
			}
		}
	}
}

// ask makes a query.
func (w *waiter) ask(ctx context.Context, index uint64, wait time.Duration) (told, error) {
	url := fmt.Sprintf("http://%s/v1/health/service/%s?wait=%dms", w.f.consul[w.node], w.f.services[w.service].name, wait.Milliseconds())
	if index > 0 {
		url += fmt.Sprintf("&index=%d", index)
	}
	if w.stale {
		url += "&stale"
	}
	ctx, cancel := context.WithTimeout(ctx, wait+wait/16+20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return told{}, err
	}
	a := told{node: w.node, given: index, sent: time.Now(), wait: wait}
	resp, err := w.web.Do(req)
	if err != nil {
		return told{}, errBroken
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return told{}, errBroken
	}
	if resp.StatusCode != http.StatusOK {
		return told{}, fmt.Errorf("%d: %.60s", resp.StatusCode, body)
	}
	a.got = time.Now()
	a.index, _ = strconv.ParseUint(resp.Header.Get("X-Consul-Index"), 10, 64) // 0 is judged.
	a.revision, _ = strconv.ParseUint(resp.Header.Get("X-Regd-Revision"), 10, 64)
	a.content, err = contentOf(body)
	return a, err
}

// errBroken is the error of a connection that broke, whichever way.
var errBroken = fmt.Errorf("no connection")

// contentOf is what an answer of health/service says.
func contentOf(body []byte) (string, error) {
	var list []struct {
		Service struct {
			ID, Address string
			Port        uint16
		}
		Checks []struct{ Status string }
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return "", err
	}
	var all []string
	for _, i := range list {
		if len(i.Checks) != 1 {
			return "", fmt.Errorf("%s has %d checks", i.Service.ID, len(i.Checks))
		}
		all = append(all, i.Service.ID+"="+entry{i.Service.Address, i.Service.Port, i.Checks[0].Status == "passing"}.String())
	}
	return fold(all), nil
}

// askers ask by DNS at a steady rate, whatever becomes of the questions before. A question that is not answered in a moment, or
// by an error, goes to the next node.
type askers struct {
	f       *foreign
	rate    int
	mu      sync.Mutex // guards the fields below
	answers []resolved
	lost    []string
	skipped map[string]int // attempts that came to nothing, by why
}

// resolved is the answer to a question.
type resolved struct {
	service, node int
	qtype         uint16
	content       string
	due, sent     time.Time // by the rate; the attempt that was answered
	got           time.Time
}

const (
	// dnsPatience is how long an answer is waited for before the next node is asked.
	dnsPatience = 300 * time.Millisecond
	// dnsAttempts is how often a question is asked.
	dnsAttempts = 6
)

func (k *askers) run(ctx context.Context) {
	k.skipped = map[string]int{}
	var wg sync.WaitGroup
	defer wg.Wait()
	begun := time.Now()
	for n := 0; ; n++ {
		due := begun.Add(time.Duration(n) * time.Second / time.Duration(k.rate))
		select {
		case <-time.After(time.Until(due)):
		case <-ctx.Done():
			return
		}
		q := resolved{service: rand.IntN(len(k.f.services)), node: n % len(k.f.dns), qtype: []uint16{miekg.TypeA, miekg.TypeSRV}[rand.IntN(2)], due: due}
		wg.Go(func() { k.resolve(q) })
	}
}

// resolve asks until there is an answer.
func (k *askers) resolve(q resolved) {
	var why error
	for range dnsAttempts {
		if why = k.ask(&q); why == nil {
			k.mu.Lock()
			k.answers = append(k.answers, q)
			k.mu.Unlock()
			return
		}
		k.mu.Lock()
		k.skipped[why.Error()]++
		k.mu.Unlock()
		q.node = (q.node + 1) % len(k.f.dns)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.lost = append(k.lost, why.Error())
}

func (k *askers) ask(q *resolved) error {
	m := new(miekg.Msg)
	m.SetQuestion(k.f.services[q.service].name+".service.regd.", q.qtype)
	m.SetEdns0(1232, false)
	c := miekg.Client{Timeout: dnsPatience}
	q.sent = time.Now()
	r, _, err := c.Exchange(m, k.f.dns[q.node])
	q.got = time.Now()
	switch {
	case err != nil && strings.Contains(err.Error(), "refused"):
		return fmt.Errorf("nobody listens")
	case err != nil:
		return fmt.Errorf("no answer in time")
	case r.Rcode == miekg.RcodeServerFailure:
		return fmt.Errorf("SERVFAIL")
	}
	q.content = recordsOf(r)
	return nil
}

// recordsOf is what an answer says: addresses, or addresses with ports.
func recordsOf(r *miekg.Msg) string {
	if r.Rcode != miekg.RcodeSuccess || r.Truncated {
		return fmt.Sprintf("%s, truncated: %t", miekg.RcodeToString[r.Rcode], r.Truncated)
	}
	at := map[string]string{}
	for _, rr := range r.Extra {
		if a, ok := rr.(*miekg.A); ok {
			at[a.Hdr.Name] = a.A.String()
		}
	}
	var all []string
	for _, rr := range r.Answer {
		switch rr := rr.(type) {
		case *miekg.A:
			all = append(all, rr.A.String())
		case *miekg.SRV:
			address, err := netip.ParseAddr(at[rr.Target])
			if err != nil {
				address = netip.Addr{}
			}
			all = append(all, fmt.Sprintf("%s:%d", address, rr.Port))
		default:
			all = append(all, rr.String())
		}
	}
	return fold(all)
}
