package health

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/regd-io/regd/fsm"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// instanceKey names an instance.
type instanceKey struct{ namespace, service, id string }

// String is the key as an id: its parts escaped and joined by slashes.
func (k instanceKey) String() string {
	return url.PathEscape(k.namespace) + "/" + url.PathEscape(k.service) + "/" + url.PathEscape(k.id)
}

func (k instanceKey) proto() *raftlogv1.Key {
	return &raftlogv1.Key{Namespace: k.namespace, Service: k.service, Id: k.id}
}

// in returns the instance as st has it, nil if it has none.
func (k instanceKey) in(st *fsm.State) *fsm.Record { return st.Instance(k.namespace, k.service, k.id) }

// CheckID is the id under which a TTL check is renewed (RENEW_KIND_CHECK): "namespace/service/id/check", each part
// path-escaped.
func CheckID(namespace, service, id, check string) string {
	return instanceKey{namespace, service, id}.String() + "/" + url.PathEscape(check)
}

// parseCheckID is the reverse of CheckID.
func parseCheckID(id string) (instanceKey, string, error) {
	parts := strings.Split(id, "/")
	if len(parts) != 4 {
		return instanceKey{}, "", fmt.Errorf("check id %q has %d parts, not 4", id, len(parts))
	}
	for i, part := range parts {
		plain, err := url.PathUnescape(part)
		if err != nil {
			return instanceKey{}, "", fmt.Errorf("check id %q: %w", id, err)
		}
		parts[i] = plain
	}
	return instanceKey{parts[0], parts[1], parts[2]}, parts[3], nil
}

// ticking tells whether rec has the check and it is not critical: a critical TTL check waits for a report, not for time.
func ticking(rec *fsm.Record, check string) bool {
	if rec == nil {
		return false
	}
	for _, c := range rec.Checks() {
		if c.Name == check {
			return c.Status != registryv1.CheckStatus_CHECK_STATUS_CRITICAL
		}
	}
	return false
}
