package fsm_test

import (
	"fmt"
	"maps"
	"slices"

	"github.com/regd-io/regd/fsm"
)

func keyText(k *fsm.KeyValue) string {
	text := fmt.Sprintf("%s/%s %q created %d modified %d version %d", k.Namespace, k.Key, k.Value, k.CreateRevision, k.ModifyRevision, k.Version)
	if k.Flags != 0 {
		text += fmt.Sprintf(" flags %d", k.Flags)
	}
	if k.LockIndex != 0 {
		text += fmt.Sprintf(" locked %d times", k.LockIndex)
	}
	if k.SessionID != "" {
		text += ", of " + k.SessionID
	}
	return text
}

// keysOf is everything that a state shows of keys.
func keysOf(s *fsm.State) []string {
	var all []string
	for namespace, ok := s.NextNamespace(""); ok; namespace, ok = s.NextNamespace(namespace) {
		s.Keys(namespace, "", "", func(k *fsm.KeyValue) bool {
			all = append(all, keyText(k))
			return true
		})
	}
	for _, delay := range fsm.LockDelays(s) {
		all = append(all, "lock delay of "+delay)
	}
	deletions := fsm.Deletions(s)
	for _, namespace := range slices.Sorted(maps.Keys(deletions)) {
		if at := deletions[namespace]; at > 0 {
			all = append(all, fmt.Sprintf("deleted in %q at %d", namespace, at))
		}
	}
	return all
}
