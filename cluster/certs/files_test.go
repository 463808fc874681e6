package certs

import (
	"io/fs"
	"testing"
)

func TestOnlyTheOwnerReadsAKeyOrTheGroupOneOfRoots(t *testing.T) {
	t.Parallel()
	const self, root, else1 = 1000, 0, 1001
	for _, tt := range []struct {
		mode        fs.FileMode
		owner, self int
		ok          bool
	}{
		{0o600, self, self, true},
		{0o400, self, self, true},
		{0o700, self, self, true},
		{0o640, self, self, false}, // Its owner can change that.
		{0o604, self, self, false},
		{0o620, self, self, false},
		{0o440, root, self, true}, // A secret of Kubernetes with fsGroup.
		{0o640, root, self, true},
		{0o640, root, root, true},
		{0o600, root, root, true},
		{0o660, root, self, false},
		{0o650, root, self, false},
		{0o644, root, self, false}, // A secret of Kubernetes without.
		{0o444, root, root, false},
		{0o600, else1, self, false},
		{0o600, else1, root, false},
		{0o600 | fs.ModeNamedPipe, self, self, false},
	} {
		if err := judgeKey("k", tt.mode, tt.owner, tt.self); (err == nil) != tt.ok {
			t.Errorf("mode %v of user %d, read by %d: %v", tt.mode, tt.owner, tt.self, err)
		}
	}
}
