package regdhttp_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/regd-io/regd/client/discovery"
	"github.com/regd-io/regd/client/internal/registrytest"
	"github.com/regd-io/regd/client/regdhttp"
)

// TestStale checks that a bound on the age of views holds for calls.
func TestStale(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := registrytest.New(t)
		r.Put(inst("a"))
		d := r.Discovery(discovery.WithMaxStale(time.Minute))
		tr := transport(t, d, regdhttp.WithTransport(&script{answers: []answer{{status: 200}}}))
		if _, err := get(t, tr, "http://payment.service/"); err != nil {
			t.Error(err)
		}
		r.Stop()
		time.Sleep(2 * time.Minute)
		if _, err := get(t, tr, "http://payment.service/"); !errors.Is(err, discovery.ErrStale) {
			t.Errorf("got %v", err)
		}
	})
}
