package rpc

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/fsm"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// How access control works.
//
// A call shows a credential: a token, a client certificate, or nothing. The credential stands for an identity, the identity
// has policies, and a policy is rules. All that is in the State, and the State judges (fsm.State.Allowed).
//
// It is asked twice. Here, when a call comes in, by what this node knows: so that who may not even ask costs no log entry,
// and for reads, which have no other judge. And by the state machine for each write, at the very revision at which it
// is applied: a token that was deleted before does nothing any more, whatever this node knew.
//
// A node that is behind could deny what was just allowed. So before it denies it looks at a State that is sure to be
// current. What was just forbidden it forbids once it has heard of it; see recheck for streams that are open then.

// guard knows who may do what at a node.
type guard struct{ node Node }

// ErrUnauthenticated says that the token that was shown is nobody's.
var ErrUnauthenticated = errors.New("nobody has this token")

// tokenPrefix begins every token, so that people and scanners know one when they see it.
const tokenPrefix = "regd_"

// splitToken takes a token, "regd_ID_SECRET", apart.
func splitToken(token string) (id, secret string, ok bool) {
	rest, ok := strings.CutPrefix(token, tokenPrefix)
	if !ok {
		return "", "", false
	}
	return strings.Cut(rest, "_")
}

// callerKey is where a context has the credential of the caller.
type callerKey struct{}

// credentialOf returns what the caller has shown.
func credentialOf(ctx context.Context) string {
	if credential, ok := ctx.Value(callerKey{}).(string); ok {
		return credential
	}
	return fsm.Anonymous
}

// Credential returns what the caller of a call or request has shown, as fsm.State.Allowed takes it.
func Credential(ctx context.Context) string { return credentialOf(ctx) }

// authenticate finds out who makes an RPC. The context that it returns knows.
func (g guard) authenticate(ctx context.Context) (context.Context, error) {
	values := metadata.ValueFromIncomingContext(ctx, "authorization")
	if len(values) == 0 {
		if name, ok := certificateName(ctx); ok {
			return context.WithValue(ctx, callerKey{}, fsm.CertificateCredential(name)), nil
		}
		return ctx, nil
	}
	return g.identify(ctx, values[0])
}

// identify finds out whose token an authorization header has.
func (g guard) identify(ctx context.Context, authorization string) (context.Context, error) {
	id, secret, wellFormed := splitToken(bearer(authorization))
	st := g.node.Feed().State()
	err := checkToken(st, id, secret)
	if err != nil && st.Enforced() && wellFormed {
		// It may have been created a moment ago.
		v, viewErr := g.node.View(ctx, cluster.Freshness{Mode: cluster.ModeLinearizable})
		if viewErr != nil {
			return ctx, explain(viewErr, "check token "+quote(id), "token", id)
		}
		err = checkToken(v.State, id, secret)
	}
	switch {
	case err == nil:
		return context.WithValue(ctx, callerKey{}, fsm.TokenCredential(id)), nil
	case !st.Enforced(): // Then everybody may do everything.
		return ctx, nil
	case !wellFormed: // It is not repeated: it may be a secret of another kind.
		return ctx, explain(fmt.Errorf("%w: a token looks like regd_ID_SECRET", ErrUnauthenticated), "check token")
	default:
		return ctx, explain(err, "check token "+quote(id), "token", id)
	}
}

// checkToken checks a secret against the State. Whether the id or the secret is wrong is not told.
func checkToken(st *fsm.State, id, secret string) error {
	token, ok := st.Token(id)
	hash := sha256.Sum256([]byte(secret))
	if !ok || subtle.ConstantTimeCompare(hash[:], token.SecretHash[:]) == 0 {
		return ErrUnauthenticated
	}
	return expired(token)
}

// expired returns nil unless the token's time is over.
func expired(token fsm.Token) error {
	end := time.UnixMilli(token.ExpiresUnixMs)
	if token.ExpiresUnixMs == 0 || time.Now().Before(end) {
		return nil
	}
	return fmt.Errorf("%w: it expired at %s", ErrUnauthenticated, end.UTC().Format(time.RFC3339))
}

// bearer is the token in an authorization header, empty if there is none.
func bearer(authorization string) string {
	scheme, token, _ := strings.Cut(authorization, " ")
	if !strings.EqualFold(scheme, "bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

// known tells whether the caller still is who it was, nil if so: its token may have been deleted, or have expired.
func (g guard) known(ctx context.Context) error {
	st := g.node.Feed().State()
	id, isToken := strings.CutPrefix(credentialOf(ctx), fsm.TokenCredential(""))
	if !isToken || !st.Enforced() {
		return nil
	}
	token, ok := st.Token(id)
	if !ok {
		return explain(ErrUnauthenticated, "check token "+quote(id), "token", id)
	}
	return explain(expired(token), "check token "+quote(id), "token", id)
}

// need is one thing that a call takes permission for.
type need struct {
	action          registryv1.Action
	namespace, name string
	prefix          bool                 // on all that begins with the name
	somewhere       bool                 // on anything at all will do
	or              [2]registryv1.Action // will do too, somewhere; 0: no other
}

// met tells whether the State allows it.
func (n need) met(st *fsm.State, credential string) bool {
	switch {
	case n.somewhere:
		return st.AllowedSomewhere(credential, n.action) ||
			n.or[0] != 0 && st.AllowedSomewhere(credential, n.or[0]) || n.or[1] != 0 && st.AllowedSomewhere(credential, n.or[1])
	case n.prefix:
		return st.AllowedPrefix(credential, n.action, n.namespace, n.name)
	}
	return st.Allowed(credential, n.action, n.namespace, n.name)
}

func (n need) String() string {
	action := actionName(n.action)
	switch {
	case n.or[0] != 0:
		return action + ", " + actionName(n.or[0]) + " or " + actionName(n.or[1]) + " anything"
	case n.somewhere:
		return action + " anything"
	case n.namespace == "":
		return action
	case n.prefix:
		return action + " " + n.namespace + "/" + n.name + "*"
	default:
		return action + " " + n.namespace + "/" + n.name
	}
}

// actionName is an action in words.
func actionName(a registryv1.Action) string {
	return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(a.String(), "ACTION_")), "_", " ")
}

// authorize checks that the caller may do what a call is about to.
func (g guard) authorize(ctx context.Context, needs ...need) error {
	st := g.node.Feed().State()
	if !st.Enforced() {
		return nil
	}
	credential := credentialOf(ctx)
	if _, missing := firstUnmet(st, credential, needs); !missing {
		return nil
	}
	v, err := g.node.View(ctx, cluster.Freshness{Mode: cluster.ModeLinearizable})
	if err != nil {
		return explain(err, "check permissions")
	}
	unmet, missing := firstUnmet(v.State, credential, needs)
	if !missing {
		return nil
	}
	return denied(v.State, credential, unmet)
}

func firstUnmet(st *fsm.State, credential string, needs []need) (need, bool) {
	for _, n := range needs {
		if !n.met(st, credential) {
			return n, true
		}
	}
	return need{}, false
}

// denied is the error of a caller who lacks a permission.
func denied(st *fsm.State, credential string, n need) error {
	who := credential
	if identity, ok := st.Identity(credential); ok {
		who = "identity " + identity
	}
	return explain(fmt.Errorf("%w: %s may not %s", fsm.ErrDenied, who, n), "check permissions", "missing", n.String())
}

// visible returns what decides which names of an action's kind the caller may see, nil if all.
func (g guard) visible(ctx context.Context, action registryv1.Action) func(namespace, name string) bool {
	st := g.node.Feed().State()
	credential := credentialOf(ctx)
	if !st.Enforced() || st.Allowed(credential, action, allNamespaces, allNamespaces) {
		return nil
	}
	return func(namespace, name string) bool {
		return g.node.Feed().State().Allowed(credential, action, namespace, name)
	}
}

// check finds out who calls and whether he may, as the method's rule has it. req is nil for a stream.
func (g guard) check(ctx context.Context, method string, req any) (context.Context, error) {
	ctx, err := g.authenticate(ctx)
	if err != nil {
		return ctx, err
	}
	r, known := accessRules[method]
	if !known {
		return ctx, explain(fmt.Errorf("%w: no rule says who may call it", fsm.ErrDenied), "call "+method)
	}
	if r == nil || !g.node.Feed().State().Enforced() {
		return ctx, nil
	}
	return ctx, g.authorize(ctx, r(req)...)
}

// calledStream is a stream whose context knows who calls.
type calledStream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context returns the context that knows.
func (s *calledStream) Context() context.Context { return s.ctx }

// mayRenew checks that sessions or leases are the caller's own. What this node does not know is the leader's to judge.
func (g guard) mayRenew(ctx context.Context, kind peerv1.RenewKind, ids []string) error {
	st := g.node.Feed().State()
	if !st.Enforced() {
		return nil
	}
	if err := g.known(ctx); err != nil {
		return err
	}
	credential := credentialOf(ctx)
	for _, id := range ids {
		owner := ""
		switch kind {
		case peerv1.RenewKind_RENEW_KIND_SESSION:
			if session := st.Session(id); session != nil {
				owner = session.Owner
			}
		case peerv1.RenewKind_RENEW_KIND_LEASE:
			if lease := st.Lease(id); lease != nil {
				owner = lease.Owner
			}
		default:
			return nil // Checks are renewed by who may report their health.
		}
		if !st.MayUse(credential, owner) {
			return explain(fmt.Errorf("%w: it belongs to %s", fsm.ErrDenied, owner), "renew "+id, "id", id)
		}
	}
	return nil
}
