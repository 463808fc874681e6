package regdhttp_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/balance"
	"github.com/regd-io/regd/client/discovery"
	"github.com/regd-io/regd/client/regdhttp"
)

func Example() {
	c, err := client.New([]string{"n1:7400", "n2:7400", "n3:7400"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	d, err := discovery.New(c)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer d.Close()
	t, err := regdhttp.New(d)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer t.Close()
	web := &http.Client{Transport: t, Timeout: 5 * time.Second}

	resp, err := web.Get("http://payment.service/v1/charges/17")
	switch {
	case errors.Is(err, discovery.ErrNoSuchService):
		fmt.Println("is its name right?", err)
	case err != nil:
		fmt.Println(err)
	default:
		defer resp.Body.Close()
		fmt.Println(resp.Status)
	}
}

// Instances in the client's own zone are preferred, and one that fails is left alone for a while.
func ExampleWithBalancing() {
	var d *discovery.Discovery // see the example of the package
	t, err := regdhttp.New(d, regdhttp.WithBalancing(
		balance.Local("eu-west", "eu-west-1a", balance.LeastRequests()),
		balance.WithBreaker(balance.Breaker{ConsecutiveFailures: 3}), balance.WithEjection(balance.Ejection{}),
	))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer t.Close()
}

// All requests of a user go to one instance, as long as that is there.
func ExampleWithPick() {
	var d *discovery.Discovery // see the example of the package
	t, err := regdhttp.New(d, regdhttp.WithBalancing(balance.Rendezvous()),
		regdhttp.WithPick(func(r *http.Request) balance.Request {
			return balance.Request{Hash: balance.Hash(r.Header.Get("User-Id"))}
		}))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer t.Close()
}

// A POST that the server recognises by its key may be tried on another instance when the connection breaks.
func ExampleIsIdempotent() {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, "http://payment.service/v1/charges",
		strings.NewReader(`{"amount": 100}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(regdhttp.IsIdempotent(req))
	req.Header.Set("Idempotency-Key", "6f1c")
	fmt.Println(regdhttp.IsIdempotent(req))
	// Output:
	// false
	// true
}
