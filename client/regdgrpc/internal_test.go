package regdgrpc

import (
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/attributes"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/status"

	"github.com/regd-io/regd/client/balance"
)

// TestConfig checks that a config is read strictly, and that errors say what is wrong.
func TestConfig(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`{}`: "", `{"policy": "least_requests"}`: "", `{"policy": "round_robin", "region": "r", "zone": "z"}`: "",
		`{"policy": "weighted_round_robin"}`: "", `{"policy": "random"}`: "", `{"policy": "weighted_random"}`: "",
		`{"policy": "ring", "hashHeader": "user"}`: "", `{"policy": "rendezvous", "hashHeader": "user"}`: "",
		`{"breaker": {"openTime": "1.5s"}, "ejection": {"maxShare": 0.5, "successRate": true}}`: "",

		`{"policy": "best"}`:                  `policy "best"`,
		`{"policy": "ring"}`:                  "hashHeader is missing",
		`{"polcy": "random"}`:                 `unknown field "polcy"`,
		`{"breaker": {"opentime": 5}}`:        "duration 5",
		`{"breaker": {"openTime": "5"}}`:      "missing unit",
		`{"breaker": {"failureRatio": 2}}`:    "ratio",
		`{"ejection": {"maxShare": -1}}`:      "jection",
		`{} {}`:                               "more after the object",
		`[]`:                                  "cannot unmarshal array",
		``:                                    io.EOF.Error(),
		`{"policy": "random", "zone": ["a"]}`: "zone",
	} {
		_, err := policy{}.ParseConfig([]byte(text))
		switch {
		case want == "" && err != nil:
			t.Errorf("%s: %v", text, err)
		case want != "" && (!errors.Is(err, ErrBadConfig) || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
}

// TestConfigText checks that what ServiceConfig writes is read as it was meant.
func TestConfigText(t *testing.T) {
	t.Parallel()
	got := Config{
		Policy: "ring", HashHeader: "user", Zone: "z", Ejection: &Ejection{},
		Breaker: &Breaker{OpenTime: Duration(1500 * time.Millisecond)},
	}.ServiceConfig()
	want := `{"loadBalancingConfig":[{"regd_balance":{"policy":"ring","zone":"z","hashHeader":"user",` +
		`"breaker":{"openTime":"1.5s"},"ejection":{}}}]}`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestOutcome checks what the end of a call says of the instance.
func TestOutcome(t *testing.T) {
	t.Parallel()
	for code, want := range map[codes.Code]balance.Outcome{
		codes.OK: balance.Success, codes.NotFound: balance.Success, codes.InvalidArgument: balance.Success,
		codes.Unimplemented: balance.Success, codes.PermissionDenied: balance.Success, codes.Canceled: balance.Neutral,
		codes.Unavailable: balance.Failure, codes.DeadlineExceeded: balance.Failure, codes.Internal: balance.Failure,
		codes.Unknown: balance.Failure, codes.ResourceExhausted: balance.Failure, codes.DataLoss: balance.Failure,
	} {
		if got := outcome(balancer.DoneInfo{Err: status.Error(code, "x"), BytesSent: true}); got != want {
			t.Errorf("%s: got %d, want %d", code, got, want)
		}
	}
	if got := outcome(balancer.DoneInfo{}); got != balance.Neutral {
		t.Errorf("a call that was not made: got %d", got)
	}
}

// told is gRPC's side of a balancer.
type told struct {
	balancer.ClientConn
	state balancer.State
}

func (c *told) UpdateState(s balancer.State) { c.state = s }

// TestWhy checks that calls fail with the reason from the moment on that nothing is resolved, not only once it is reported.
func TestWhy(t *testing.T) {
	t.Parallel()
	cfg, err := parseConfig([]byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	cc := &told{}
	b := policy{}.Build(cc, balancer.BuildOptions{})
	defer b.Close()
	for _, want := range []string{"one reason", "another"} {
		_ = b.UpdateClientConnState(balancer.ClientConnState{BalancerConfig: cfg, ResolverState: resolver.State{
			Attributes: attributes.New(whyKey{}, errors.New(want)),
		}})
		if _, err := cc.state.Picker.Pick(balancer.PickInfo{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	if err := b.UpdateClientConnState(balancer.ClientConnState{}); !errors.Is(err, balancer.ErrBadResolverState) {
		t.Errorf("no config: got %v", err)
	}
}
