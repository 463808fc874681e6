package consul

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/regd-io/regd/fsm"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/rpc"
)

// kvPair is a key with its value.
type kvPair struct {
	LockIndex   uint64
	Key         string
	Flags       uint64
	Value       []byte // nil: null, as Consul has an empty one
	Session     string `json:",omitempty"`
	CreateIndex uint64
	ModifyIndex uint64
}

func pairOf(k *fsm.KeyValue) kvPair {
	p := kvPair{
		LockIndex: k.LockIndex, Key: k.Key, Flags: k.Flags, Session: k.SessionID, CreateIndex: k.CreateRevision, ModifyIndex: k.ModifyRevision,
	}
	if len(k.Value) > 0 {
		p.Value = k.Value
	}
	return p
}

// checkKey refuses what can't be a key, or with prefix what no key begins with.
func checkKey(key string, prefix bool) error {
	if key == "" && !prefix {
		return badRequest("Missing key name")
	}
	ok := len(key) <= fsm.MaxKeyBytes && utf8.ValidString(key)
	for _, c := range []byte(key) {
		ok = ok && c >= ' ' && c != 0x7f
	}
	if !ok {
		return badRequest("Invalid key %q: must be at most %d bytes of UTF-8 without control characters", cut(key), fsm.MaxKeyBytes)
	}
	return nil
}

// getKeys is GET kv/KEY: one key, with ?recurse all that begin with it, with ?keys their names.
func (s *Server) getKeys(w *answer, a *request) error {
	names, tree := a.on("keys"), a.on("recurse")
	if err := checkKey(a.rest, names || tree); err != nil {
		return err
	}
	if names || tree {
		return s.ask(w, a, read{topics: []topic{{ofKeys, a.namespace, a.rest}}, body: func(st *fsm.State) (any, bool, error) {
			pairs, hidden := a.visibleKeys(st, a.rest)
			if names {
				return folded(pairs, a.rest, a.query.Get("separator")), hidden, nil
			}
			return keyList(pairs), hidden, nil
		}})
	}
	may := func() error { return s.allow(a.Context(), a, registryv1.Action_ACTION_KV_READ, a.namespace, a.rest) }
	if err := may(); err != nil {
		return err
	}
	return s.ask(w, a, read{topics: []topic{{ofKey, a.namespace, a.rest}}, body: func(st *fsm.State) (any, bool, error) {
		if err := may(); err != nil { // It may have waited for long.
			return nil, false, err
		}
		k := st.Key(a.namespace, a.rest)
		switch {
		case k == nil:
			return keyList{}, false, nil
		case a.on("raw"):
			return rawValue(k.Value), false, nil
		default:
			return keyList{k}, false, nil
		}
	}})
}

// visibleKeys returns the keys that begin with a prefix and that the caller may see, and whether there are others.
func (a *request) visibleKeys(st *fsm.State, prefix string) (pairs []*fsm.KeyValue, hidden bool) {
	st.Keys(a.namespace, prefix, "", func(k *fsm.KeyValue) bool {
		if st.Allowed(a.credential, registryv1.Action_ACTION_KV_READ, k.Namespace, k.Key) {
			pairs = append(pairs, k)
		} else {
			hidden = true
		}
		return true
	})
	return pairs, hidden
}

// folded returns names, each cut behind the first separator that comes after the prefix. They are sorted, so equal ones meet.
func folded(pairs []*fsm.KeyValue, prefix, separator string) nameList {
	var names nameList
	for _, k := range pairs {
		name := k.Key
		if i := strings.Index(name[len(prefix):], separator); separator != "" && i >= 0 {
			name = name[:len(prefix)+i+len(separator)]
		}
		if n := len(names); n == 0 || names[n-1] != name {
			names = append(names, name)
		}
	}
	return names
}

// answerer is a value that is no JSON, or too much of it to be in memory as a whole.
type answerer interface{ answer(w *answer) error }

// keyList is keys as they are listed. None is 404, with an empty body.
type keyList []*fsm.KeyValue

func (l keyList) answer(w *answer) error {
	return stream(w, len(l), func(i int) any { return pairOf(l[i]) })
}

// nameList is names of keys as they are listed. None is 404, with an empty body.
type nameList []string

func (l nameList) answer(w *answer) error {
	return stream(w, len(l), func(i int) any { return l[i] })
}

// stream sends a list item by item.
func stream(w *answer, count int, item func(i int) any) error {
	if count == 0 {
		w.WriteHeader(http.StatusNotFound)
		return nil
	}
	if w.pretty {
		all := make([]any, count)
		for i := range all {
			all[i] = item(i)
		}
		return reply(w, http.StatusOK, all)
	}
	setJSON(w)
	w.WriteHeader(http.StatusOK)
	out := bufio.NewWriterSize(w, 32<<10)
	for i := range count {
		text, err := json.Marshal(item(i))
		if err != nil {
			return fmt.Errorf("encode the answer: %w", err) // Texts, numbers and bytes always can be.
		}
		_ = out.WriteByte("[,"[min(i, 1)])
		if _, err = out.Write(text); err != nil {
			return nil //nolint:nilerr // Who has gone needs no answer.
		}
	}
	_ = out.WriteByte(']')
	_ = out.Flush()
	return nil
}

// rawValue is a value as it is.
type rawValue []byte

func (v rawValue) answer(w *answer) error { //nolint:unparam // It is an answerer.
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "sandbox") // It is whatever somebody has put there.
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(v) // Who has gone needs no answer.
	return nil
}

// putKey is PUT kv/KEY, with ?flags, and one of ?cas, ?acquire and ?release.
func (s *Server) putKey(w *answer, a *request) error {
	if err := checkKey(a.rest, false); err != nil {
		return err
	}
	op := &raftlogv1.KVOp{Kind: raftlogv1.KVOpKind_KV_OP_KIND_SET, Key: a.rest}
	if err := a.oneOf("cas", "acquire", "release"); err != nil {
		return err
	}
	var err error
	if op.Flags, err = a.number("flags"); err != nil {
		return err
	}
	switch {
	case a.query.Has("cas"):
		op.Kind = raftlogv1.KVOpKind_KV_OP_KIND_SET_IF
		op.ExpectedRevision, err = a.number("cas")
	case a.query.Has("acquire"):
		op.Kind = raftlogv1.KVOpKind_KV_OP_KIND_ACQUIRE
		op.SessionId, err = a.sessionParameter("acquire")
	case a.query.Has("release"):
		op.Kind = raftlogv1.KVOpKind_KV_OP_KIND_RELEASE
		op.SessionId, err = a.sessionParameter("release")
	}
	if err != nil {
		return err
	}
	if a.ContentLength > fsm.MaxValueBytes {
		return &failure{http.StatusRequestEntityTooLarge, fmt.Sprintf("Request body(%d bytes) too large, max size: %d bytes.", a.ContentLength, fsm.MaxValueBytes)}
	}
	if op.Value, err = readAll(w, a); err != nil {
		return err
	}
	return s.orderKey(w, a, op)
}

// deleteKeys is DELETE kv/KEY: one key, with ?cas if it is as expected; with ?recurse all that begin with it.
func (s *Server) deleteKeys(w *answer, a *request) error {
	if err := a.oneOf("recurse", "cas"); err != nil {
		return err
	}
	tree := a.on("recurse")
	if err := checkKey(a.rest, tree); err != nil {
		return err
	}
	op := &raftlogv1.KVOp{Kind: raftlogv1.KVOpKind_KV_OP_KIND_DELETE, Key: a.rest}
	var err error
	switch {
	case tree:
		op.Kind = raftlogv1.KVOpKind_KV_OP_KIND_DELETE_PREFIX
	case a.query.Has("cas"):
		op.Kind = raftlogv1.KVOpKind_KV_OP_KIND_DELETE_IF
		op.ExpectedRevision, err = a.number("cas")
	}
	if err != nil {
		return err
	}
	return s.orderKey(w, a, op)
}

// orderKey orders one operation. That its condition does not hold is answered false.
func (s *Server) orderKey(w *answer, a *request, op *raftlogv1.KVOp) error {
	if err := rpc.CheckNamespace(a.namespace); err != nil {
		return err
	}
	if err := s.mayChange(a, op); err != nil {
		return err
	}
	_, err := s.order(a, transaction(a.namespace, op))
	switch {
	case err == nil:
		return reply(w, http.StatusOK, true)
	case errors.Is(err, fsm.ErrRevisionMismatch), errors.Is(err, fsm.ErrLockHeld), errors.Is(err, fsm.ErrLockNotHeld):
		return reply(w, http.StatusOK, false)
	case errors.Is(err, fsm.ErrSessionNotFound):
		return badSession(op.GetSessionId())
	default:
		return err
	}
}

// badSession is the error of a session that is not there. Clients look for the status.
func badSession(id string) error {
	return &failure{http.StatusInternalServerError, fmt.Sprintf("invalid session %q: it is unknown, or has ended", cut(id))}
}

func transaction(namespace string, ops ...*raftlogv1.KVOp) *raftlogv1.Command {
	return &raftlogv1.Command{Level: fsm.KVLevel, Kind: &raftlogv1.Command_KvTransaction{
		KvTransaction: &raftlogv1.KVTransaction{Namespace: namespace, Ops: ops},
	}}
}

// mayChange checks that the caller may do what an operation does.
func (s *Server) mayChange(a *request, op *raftlogv1.KVOp) error {
	switch kind := op.GetKind(); {
	case kind == raftlogv1.KVOpKind_KV_OP_KIND_DELETE_PREFIX:
		return s.permit(a.Context(), a, "kv-write "+a.namespace+"/"+op.GetKey()+"*", func(st *fsm.State) bool {
			return st.AllowedPrefix(a.credential, registryv1.Action_ACTION_KV_WRITE, a.namespace, op.GetKey())
		})
	case kind >= raftlogv1.KVOpKind_KV_OP_KIND_CHECK_REVISION:
		return s.allow(a.Context(), a, registryv1.Action_ACTION_KV_READ, a.namespace, op.GetKey())
	default:
		return s.allow(a.Context(), a, registryv1.Action_ACTION_KV_WRITE, a.namespace, op.GetKey())
	}
}

// oneOf refuses parameters that contradict each other.
func (a *request) oneOf(names ...string) error {
	var given []string
	for _, name := range names {
		if a.query.Has(name) {
			given = append(given, name)
		}
	}
	if len(given) > 1 {
		return badRequest("Conflicting flags: %s", strings.Join(given, ","))
	}
	return nil
}

// number is a parameter that must be a whole number, 0 if it is not there.
func (a *request) number(name string) (uint64, error) {
	if !a.query.Has(name) {
		return 0, nil
	}
	n, err := strconv.ParseUint(a.query.Get(name), 10, 64)
	if err != nil {
		return 0, badRequest("Invalid %s: %q: must be a whole number", name, cut(a.query.Get(name)))
	}
	return n, nil
}

func (a *request) sessionParameter(name string) (string, error) {
	id := a.query.Get(name)
	if id == "" {
		return "", badRequest("Missing session: %s must name one", name)
	}
	if validNode(name, id) != nil { // No session has such a name.
		return "", badSession(id)
	}
	return id, nil
}
