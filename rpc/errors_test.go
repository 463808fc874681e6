package rpc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
)

// detailsOf takes an error of a call apart. It fails unless there is exactly one ErrorInfo of our domain.
func detailsOf(tb testing.TB, err error) (*status.Status, *errdetails.ErrorInfo, []any) {
	tb.Helper()
	st, ok := status.FromError(err)
	if !ok {
		tb.Fatalf("error %v is not a status", err)
	}
	var infos []*errdetails.ErrorInfo
	var others []any
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			infos = append(infos, info)
		} else {
			others = append(others, d)
		}
	}
	if len(infos) != 1 || infos[0].GetDomain() != ErrorDomain {
		tb.Fatalf("status %v has the ErrorInfos %v, want exactly one of %s", st, infos, ErrorDomain)
	}
	return st, infos[0], others
}

// wantReason fails unless err came with the code and the reason.
func wantReason(tb testing.TB, err error, code codes.Code, reason apiv1.Reason) *errdetails.ErrorInfo {
	tb.Helper()
	if err == nil {
		tb.Fatalf("no error, want %v %v", code, reason)
	}
	st, info, _ := detailsOf(tb, err)
	if st.Code() != code || info.GetReason() != reasonName(reason) {
		tb.Fatalf("error %v has code %v and reason %s, want %v and %s", err, st.Code(), info.GetReason(), code, reasonName(reason))
	}
	return info
}

func TestEveryReasonHasARow(t *testing.T) {
	have := map[apiv1.Reason]bool{}
	for _, f := range Faults() {
		have[f.Reason] = true
	}
	for number, name := range apiv1.Reason_name {
		reason := apiv1.Reason(number)
		if reason != apiv1.Reason_REASON_UNSPECIFIED && !have[reason] {
			t.Errorf("%s has no row in the table of errors", name)
		}
	}
}

func TestEveryRowIsComplete(t *testing.T) {
	codesOf := map[apiv1.Reason]Fault{}
	for _, f := range Faults() {
		if f.Err == nil || f.Code == codes.OK || f.Code == codes.Unknown || f.Reason == apiv1.Reason_REASON_UNSPECIFIED || f.Hint == "" {
			t.Errorf("row %+v is not complete", f)
		}
		if n := len(reasonName(f.Reason)); n > 63 {
			t.Errorf("reason %v has %d characters, the limit is 63", f.Reason, n)
		}
		if errors.Is(f.Err, context.DeadlineExceeded) || errors.Is(f.Err, context.Canceled) {
			continue // They tell their own code for a reason of others.
		}
		if other, ok := codesOf[f.Reason]; ok && (other.Code != f.Code || other.Retryable != f.Retryable) {
			t.Errorf("%v is told as %v and as %v", f.Reason, other, f)
		}
		codesOf[f.Reason] = f
	}
}

func TestEverySentinelFindsItsOwnRow(t *testing.T) {
	table := Faults()
	for _, want := range table {
		got, ok := faultOf(table, fmt.Errorf("attempt: %w", explain(want.Err, "something")))
		if !ok || got.Reason != want.Reason || !errors.Is(got.Err, want.Err) {
			t.Errorf("%v is found as %v", want.Err, got)
		}
	}
}

func TestEveryRefusalOfTheStateMachineHasARow(t *testing.T) {
	table := Faults()
	for number, name := range raftlogv1.Code_name {
		err := fsm.Outcome{Code: raftlogv1.Code(number)}.Err()
		if err == nil {
			continue
		}
		if _, ok := faultOf(table, err); !ok {
			t.Errorf("%s has no row in the table of errors", name)
		}
	}
}

func TestCauseDoesNotHideTheError(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		want apiv1.Reason
	}{
		{"unknown outcome after a deadline", fmt.Errorf("%w: %w", cluster.ErrUnknownOutcome, context.DeadlineExceeded), apiv1.Reason_REASON_OUTCOME_UNKNOWN},
		{"unknown outcome as the node stops", fmt.Errorf("%w: %w", cluster.ErrUnknownOutcome, cluster.ErrClosed), apiv1.Reason_REASON_OUTCOME_UNKNOWN},
		{"too stale without a leader", fmt.Errorf("%w: %w", cluster.ErrTooStale, cluster.ErrNoLeader), apiv1.Reason_REASON_TOO_STALE},
		{"too stale after a deadline", fmt.Errorf("%w: %w", cluster.ErrTooStale, context.DeadlineExceeded), apiv1.Reason_REASON_TOO_STALE},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got, _ := faultOf(Faults(), tt.err); got.Reason != tt.want {
				t.Errorf("reason %v, want %v", got.Reason, tt.want)
			}
		})
	}
}

func TestStatusCarriesTheFactsOfItsMessage(t *testing.T) {
	refused := fsm.Outcome{Code: raftlogv1.Code_CODE_LOCK_HELD, Subject: "s1"}.Err()
	err := explain(errors.Join(refused, errors.New("noise")), "acquire lock default/a", "namespace", "default", "name", "a", "empty", "")
	fault, _ := faultOf(Faults(), err)
	st, info, _ := detailsOf(t, toStatus(fault, err, "n2:7400").Err())
	want := map[string]string{
		"namespace": "default", "name": "a", "subject": "s1", "leader": "n2:7400", "retryable": "false", "hint": fault.Hint,
	}
	for key, value := range want {
		if info.GetMetadata()[key] != value {
			t.Errorf("metadata %q is %q, want %q", key, info.GetMetadata()[key], value)
		}
	}
	if _, there := info.GetMetadata()["empty"]; there {
		t.Error("an empty fact is in the metadata")
	}
	if !strings.HasPrefix(st.Message(), "acquire lock default/a: ") {
		t.Errorf("message %q doesn't say what was attempted", st.Message())
	}
}

func TestOutermostFactWins(t *testing.T) {
	err := explain(explain(fsm.ErrNotFound, "inner", "id", "inner", "only", "here"), "outer", "id", "outer")
	if got := factsOf(err); got["id"] != "outer" || got["only"] != "here" {
		t.Errorf("facts %v", got)
	}
}

func TestOverloadSaysWhenToComeBack(t *testing.T) {
	fault, _ := faultOf(Faults(), cluster.ErrOverloaded)
	_, _, others := detailsOf(t, toStatus(fault, cluster.ErrOverloaded, "").Err())
	for _, d := range others {
		if retry, ok := d.(*errdetails.RetryInfo); ok && retry.GetRetryDelay().AsDuration() == overloadRetry {
			return
		}
	}
	t.Errorf("details %v have no RetryInfo", others)
}

// failure calls Register on a node that fails.
func failure(r *rig, err error) error {
	r.node.set(func() {
		r.node.onPropose = func(context.Context, *raftlogv1.Command) error { return err }
	})
	_, got := r.registry.Register(context.Background(), &apiv1.RegisterRequest{Instance: instance("web", "1")})
	return got
}

func TestErrorsOfTheNodeReachTheClient(t *testing.T) {
	r := newRig(t)
	for _, tt := range []struct {
		err    error
		code   codes.Code
		reason apiv1.Reason
	}{
		{cluster.ErrNotLeader, codes.Unavailable, apiv1.Reason_REASON_NOT_LEADER},
		{cluster.ErrNoLeader, codes.Unavailable, apiv1.Reason_REASON_NO_LEADER},
		{cluster.ErrUnknownOutcome, codes.Aborted, apiv1.Reason_REASON_OUTCOME_UNKNOWN},
		{cluster.ErrOverloaded, codes.ResourceExhausted, apiv1.Reason_REASON_OVERLOADED},
		{cluster.ErrDiskFull, codes.ResourceExhausted, apiv1.Reason_REASON_DISK_FULL},
		{cluster.ErrClosed, codes.Unavailable, apiv1.Reason_REASON_SHUTTING_DOWN},
		{cluster.ErrRemoved, codes.Unavailable, apiv1.Reason_REASON_REMOVED},
		{cluster.ErrStarting, codes.Unavailable, apiv1.Reason_REASON_STARTING},
	} {
		t.Run(tt.reason.String(), func(t *testing.T) {
			info := wantReason(t, failure(r, fmt.Errorf("propose: %w", tt.err)), tt.code, tt.reason)
			if info.GetMetadata()["leader"] != "n1:7400" || info.GetMetadata()["service"] != "web" {
				t.Errorf("metadata %v lacks the leader or the service", info.GetMetadata())
			}
		})
	}
}

func TestBugsStayInTheLog(t *testing.T) {
	log := &lockedLog{}
	r := newRig(t, func(cfg *Config) { cfg.Logger = logTo(log) })
	for name, fail := range map[string]func() error{
		"error nobody knows": func() error { return failure(r, errors.New("secret detail")) },
		"panic": func() error {
			r.node.set(func() {
				r.node.onPropose = func(context.Context, *raftlogv1.Command) error { panic("secret detail") }
			})
			_, err := r.registry.Register(context.Background(), &apiv1.RegisterRequest{Instance: instance("web", "1")})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			log.Reset()
			err := fail()
			info := wantReason(t, err, codes.Internal, apiv1.Reason_REASON_INTERNAL)
			if strings.Contains(err.Error(), "secret") || strings.Contains(fmt.Sprint(info), "secret") {
				t.Errorf("the client learns %v", err)
			}
			id := info.GetMetadata()["id"]
			if id == "" || !strings.Contains(log.String(), id) || !strings.Contains(log.String(), "secret detail") {
				t.Errorf("the log says nothing of id %q: %s", id, log.String())
			}
		})
	}
}
