package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// DefaultEvery is how often files are looked at when Config does not say.
const DefaultEvery = 10 * time.Second

// Config says what a Source is made of.
type Config struct {
	// Files to read. Cert and Key are required.
	Files
	// Port is what the files are for, in logs and metrics: "peer", "client". Required.
	Port string
	// Node is the name of the node that the certificate must be of, with the role of a peer and vouched for by CA. Empty:
	// any certificate will do.
	Node string
	// Every is how often the files are looked at. 0: DefaultEvery.
	Every time.Duration
	// Logger tells of new files and bad ones. Nil: nothing is logged.
	Logger *slog.Logger
}

// Source holds the latest good content of Files. Its methods are safe for concurrent use.
type Source struct {
	cfg     Config
	log     *slog.Logger
	current atomic.Pointer[material]
	done    chan struct{}
	close   sync.Once
	ended   sync.WaitGroup

	// Known to the one who looks only.
	seen contents  // what current was made of
	bad  *contents // what was found bad at the last look; nil: it was good
	told time.Time // when it was last said that the certificate is about to expire

	mu       sync.Mutex // guards watched
	watched  map[*watched]struct{}
	failures prometheus.Counter
	expiry   *prometheus.GaugeVec
}

// watched is a connection whose other side has shown a certificate.
type watched struct {
	list []*x509.Certificate
	use  x509.ExtKeyUsage
	cut  func()
}

// Open reads the files, and reads them again until Close, which the caller must call. Its errors name the file and what is
// wrong with it; among them are ErrKeyMode, ErrNoID and ErrWrongRole.
func Open(cfg Config) (*Source, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Every <= 0 {
		cfg.Every = DefaultEvery
	}
	labels := prometheus.Labels{"port": cfg.Port}
	s := &Source{
		cfg: cfg, log: cfg.Logger.With("port", cfg.Port), done: make(chan struct{}), watched: map[*watched]struct{}{},
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "regd_tls_reload_failures_total", ConstLabels: labels,
			Help: "Times that new TLS files were found bad; the old ones stay in use.",
		}),
		expiry: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "regd_tls_certificate_expiry_seconds", ConstLabels: labels,
			Help: "When the certificate in use expires, and the first of the authorities: Unix time.",
		}, []string{"kind"}),
	}
	found, err := cfg.read()
	if err != nil {
		return nil, fmt.Errorf("TLS of the %s port: %w", cfg.Port, err)
	}
	m, err := s.judge(found)
	if err != nil {
		return nil, fmt.Errorf("TLS of the %s port: %w", cfg.Port, err)
	}
	s.use(found, m)
	s.ended.Go(s.run)
	return s, nil
}

// Close ends looking at the files. Connections stay.
func (s *Source) Close() {
	s.close.Do(func() { close(s.done) })
	s.ended.Wait()
}

// ID returns what the certificate says of this side; its error is ErrNoID.
func (s *Source) ID() (ID, error) {
	m := s.current.Load()
	return m.id, m.noID
}

// Collectors are the metrics of the Source, to be registered once.
func (s *Source) Collectors() []prometheus.Collector {
	return []prometheus.Collector{s.failures, s.expiry}
}

func (s *Source) run() {
	ticker := time.NewTicker(s.cfg.Every)
	defer ticker.Stop()
	for {
		select {
		case <-s.done:
			return
		case <-ticker.C:
			s.look()
			s.remind()
		}
	}
}

// look takes new files into use if they are good, and ends connections that are not trusted any more.
func (s *Source) look() {
	found, err := s.cfg.read()
	if err == nil && found == s.seen {
		s.bad = nil
		s.cut(false)
		return
	}
	var m *material
	if err == nil {
		m, err = s.judge(found)
	}
	if err != nil {
		s.fail(found, err)
		s.cut(false)
		return
	}
	s.use(found, m)
	s.log.Info("new TLS files are in use", "cert", s.cfg.Cert, "serial", m.cert.Leaf.SerialNumber.Text(16), "expires", m.cert.Leaf.NotAfter)
	s.cut(true)
}

// remindEvery is how often it is said that the certificate is about to expire.
const remindEvery = 24 * time.Hour

// remind says when less than a tenth of the certificate's life is left, for those who watch no metrics.
func (s *Source) remind() {
	cert, now := s.current.Load().cert.Leaf, time.Now()
	left := cert.NotAfter.Sub(now)
	if left < cert.NotAfter.Sub(cert.NotBefore)/10 && now.Sub(s.told) >= remindEvery {
		s.told = now
		s.log.Warn("the TLS certificate is about to expire: renew it", "cert", s.cfg.Cert, "expires", cert.NotAfter, "left", left.Round(time.Second))
	}
}

// judge tells whether contents may take the place of what is in use.
func (s *Source) judge(found contents) (*material, error) {
	now := time.Now()
	m, err := s.cfg.parse(found, now)
	if err != nil {
		return nil, err
	}
	if s.cfg.Node != "" {
		if err := m.isPeer(s.cfg.Files, s.cfg.Node, now); err != nil {
			return nil, err
		}
	}
	if old := s.current.Load(); old != nil && old.noID == nil && m.id.Domain != old.id.Domain {
		return nil, fmt.Errorf("%w: it is of %s, in use is %s: a node changes its trust domain by a restart", ErrWrongDomain, m.id, old.id)
	}
	return m, nil
}

// use makes material the one that is used.
func (s *Source) use(found contents, m *material) {
	s.seen, s.bad = found, nil
	s.current.Store(m)
	s.expiry.WithLabelValues("certificate").Set(float64(m.cert.Leaf.NotAfter.Unix()))
	if len(m.cas) == 0 {
		return
	}
	first := m.cas[0].NotAfter
	for _, ca := range m.cas {
		if ca.NotAfter.Before(first) {
			first = ca.NotAfter
		}
	}
	s.expiry.WithLabelValues("authority").Set(float64(first.Unix()))
}

// fail notes that the files are bad. Who replaces them one by one may be seen in the middle of it: what is bad is so when
// it has not changed by the next look. Then each look counts, so that the metric grows until the files are good.
func (s *Source) fail(found contents, err error) {
	again := s.bad != nil && *s.bad == found
	s.bad = &found
	if !again {
		s.log.Warn("TLS files can't be used; looking again", "err", err, "retry_in", s.cfg.Every)
		return
	}
	s.failures.Inc()
}

// Watch keeps an eye on an established connection until stop is called: cut is called, once, when no authority that is
// trusted vouches for the certificate of the other side any more, or it has expired, at the latest Config.Every and the
// time to check all connections later. dialled tells which side this is. A connection without a certificate is not watched.
func (s *Source) Watch(state tls.ConnectionState, dialled bool, cut func()) (stop func()) {
	if len(state.PeerCertificates) == 0 {
		return func() {}
	}
	w := &watched{list: state.PeerCertificates, use: x509.ExtKeyUsageClientAuth, cut: sync.OnceFunc(cut)}
	if dialled {
		w.use = x509.ExtKeyUsageServerAuth
	}
	s.mu.Lock()
	s.watched[w] = struct{}{}
	s.mu.Unlock()
	// The files may have changed since the handshake began.
	if s.refusal(s.current.Load(), w) != nil {
		w.cut()
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watched, w)
	}
}

func (s *Source) refusal(m *material, w *watched) error {
	return m.verify(w.list, w.use, time.Now())
}

// cut ends the connections that are not trusted any more. Unless there are new authorities only time can have changed.
func (s *Source) cut(changed bool) {
	m, now := s.current.Load(), time.Now()
	s.mu.Lock()
	all := make([]*watched, 0, len(s.watched))
	for w := range s.watched {
		if changed || now.After(w.list[0].NotAfter) {
			all = append(all, w)
		}
	}
	s.mu.Unlock()
	ended := 0
	var last error
	for _, w := range all {
		if err := s.refusal(m, w); err != nil {
			last = err
			ended++
			w.cut()
		}
	}
	if ended > 0 {
		s.log.Warn("connections were ended: the other side is not trusted any more", "count", ended, "last_reason", last)
	}
}

// errPlain is said when what came is no TLS at all.
var errPlain = errors.New("the other side does not speak TLS")
