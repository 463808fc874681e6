package sd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/fsm"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// Path is where the door is.
const Path = "/sd/prometheus"

// maxAtOnce is how many requests are worked on at once: an answer is in memory as a whole.
const maxAtOnce = 4

// Node is what the door needs of a node.
type Node interface {
	// View returns a State as fresh as asked, or an error.
	View(ctx context.Context, fresh cluster.Freshness) (cluster.View, error)
}

// Handler answers requests. Its methods may be called from any goroutine.
type Handler struct {
	node       Node
	credential func(context.Context) string
	places     chan struct{}
	requests   *prometheus.CounterVec
}

// New returns the handler of a node; credential tells who makes a request, as fsm.State.Allowed takes it.
func New(node Node, credential func(context.Context) string) *Handler {
	return &Handler{
		node: node, credential: credential, places: make(chan struct{}, maxAtOnce),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "regd_sd_requests_total",
			Help: "Number of requests for targets over HTTP, by status code.",
		}, []string{"code"}),
	}
}

// Collectors returns the metrics.
func (h *Handler) Collectors() []prometheus.Collector { return []prometheus.Collector{h.requests} }

// ServeHTTP answers with the targets, all of them: 400 says which parameter is wrong, 503 that the node can't know them now
// or has too many requests; then the targets of before should be kept.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.requests.WithLabelValues(strconv.Itoa(h.serve(w, r))).Inc()
}

func (h *Handler) serve(w http.ResponseWriter, r *http.Request) (code int) {
	fail := func(code int, err error) int {
		w.Header().Set("Cache-Control", "no-store")
		http.Error(w, err.Error(), code)
		return code
	}
	q, err := parse(r.URL.Query())
	if err != nil {
		return fail(http.StatusBadRequest, err)
	}
	select {
	case h.places <- struct{}{}:
		defer func() { <-h.places }()
	default:
		w.Header().Set("Retry-After", "1")
		return fail(http.StatusServiceUnavailable, fmt.Errorf("%d requests are being answered, the limit is %d: try again", len(h.places), maxAtOnce))
	}
	v, err := h.node.View(r.Context(), cluster.Freshness{Mode: cluster.ModeBounded, MaxStaleness: q.staleness})
	if err != nil {
		return fail(http.StatusServiceUnavailable, fmt.Errorf("what is registered is not known as of %v ago: %w", q.staleness, err))
	}
	found, leftOut, err := groups(v.State, q, visible(v.State, h.credential(r.Context())))
	switch {
	case errors.Is(err, errTooMany):
		return fail(http.StatusBadRequest, fmt.Errorf("%w: ask for fewer, by namespace, service, tag, metadata or zone", err))
	case err != nil:
		return fail(http.StatusInternalServerError, err)
	}
	body, err := json.Marshal(found)
	if err != nil {
		return fail(http.StatusInternalServerError, err)
	}
	head := w.Header()
	head.Set("Content-Type", "application/json")
	head.Set("Cache-Control", "no-cache") // It may be kept, and asked about.
	head.Set("Vary", "Authorization")
	head.Set("ETag", etag(body))
	head.Set("X-Regd-Revision", strconv.FormatUint(v.State.Revision(), 10))
	head.Set("X-Regd-Staleness", v.Staleness.String())
	if leftOut > 0 {
		head.Set("X-Regd-Left-Out", fmt.Sprintf("%d without a port to scrape", leftOut))
	}
	if matches(r.Header.Get("If-None-Match"), head.Get("ETag")) {
		w.WriteHeader(http.StatusNotModified)
		return http.StatusNotModified
	}
	_, _ = w.Write(body) // Who has gone needs no answer.
	return http.StatusOK
}

// visible tells which services may be seen.
func visible(st *fsm.State, credential string) func(namespace, service string) bool {
	return func(namespace, service string) bool {
		return st.Allowed(credential, registryv1.Action_ACTION_DISCOVER, namespace, service)
	}
}

func etag(body []byte) string {
	sum := sha256.Sum256(body)
	return `"` + hex.EncodeToString(sum[:16]) + `"`
}

// matches tells whether a header If-None-Match names a tag. Whether weakly makes no difference here (RFC 9110, 13.1.2).
func matches(header, tag string) bool {
	for one := range strings.SplitSeq(header, ",") {
		if one = strings.TrimSpace(one); one == "*" || strings.TrimPrefix(one, "W/") == tag {
			return true
		}
	}
	return false
}
