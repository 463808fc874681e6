package discovery

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/client"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

func web(id string) *registryv1.Instance {
	return &registryv1.Instance{Namespace: "default", Service: "web", Id: id, Health: registryv1.Health_HEALTH_PASSING}
}

// sample is a file with two instances, and one that is protected.
func sample(tb testing.TB) ([]byte, *stored) {
	tb.Helper()
	s := &stored{
		name: name{"default", "web"}, point: client.ResumePoint{ClusterID: "c", Epoch: 1, Revision: 7},
		syncedAt: time.UnixMilli(1_700_000_000_000),
		live:     []*registryv1.Instance{web("a"), web("c")},
		lost:     []suspect{{instance: web("b"), since: time.UnixMilli(1_690_000_000_000)}},
	}
	data, err := s.encode()
	if err != nil {
		tb.Fatal(err)
	}
	return data, s
}

// same tells whether two files have the same.
func same(a, b *stored) bool {
	if a.name != b.name || a.point != b.point || !a.syncedAt.Equal(b.syncedAt) || len(a.live) != len(b.live) || len(a.lost) != len(b.lost) {
		return false
	}
	for n := range a.live {
		if !proto.Equal(a.live[n], b.live[n]) {
			return false
		}
	}
	for n := range a.lost {
		if !proto.Equal(a.lost[n].instance, b.lost[n].instance) || !a.lost[n].since.Equal(b.lost[n].since) {
			return false
		}
	}
	return true
}

func TestFileIsReadAsItWasWritten(t *testing.T) {
	data, s := sample(t)
	got, err := decode(data)
	if err != nil || !same(got, s) {
		t.Errorf("got %+v, %v: want %+v", got, err, s)
	}
	for n := range data {
		if _, err := decode(data[:n]); err == nil {
			t.Errorf("the first %d bytes are taken for the whole", n)
		}
		data[n] ^= 4
		if _, err := decode(data); err == nil {
			t.Errorf("byte %d is damaged, and nobody noticed", n)
		}
		data[n] ^= 4
	}
}

func TestFileThatCanBeNoViewIsCorrupt(t *testing.T) {
	for name, spoil := range map[string]func(s *stored){
		"no cluster":      func(s *stored) { s.point.ClusterID = "" },
		"no revision":     func(s *stored) { s.point.Revision = 0 },
		"out of order":    func(s *stored) { s.live[0], s.live[1] = s.live[1], s.live[0] },
		"twice":           func(s *stored) { s.live[1] = s.live[0] },
		"live and lost":   func(s *stored) { s.lost[0].instance = s.live[0] },
		"another service": func(s *stored) { s.live[0].Service = "other" },
	} {
		_, s := sample(t)
		spoil(s)
		data, err := s.encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decode(data); !errors.Is(err, errCorrupt) {
			t.Errorf("%s: error %v, want errCorrupt", name, err)
		}
	}
}

func TestFailedWriteLeavesTheFileAsItWas(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "view")
	if err := os.MkdirAll(filepath.Join(path, "in the way"), 0o700); err != nil { // a folder that can't be replaced
		t.Fatal(err)
	}
	if err := writeFile(path, []byte("x")); err == nil {
		t.Error("no error")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("%v, %v: want nothing left over", entries, err)
	}
}

// FuzzDecode reads arbitrary bodies under a right checksum: no panic, and what is taken is a view that is read the same
// again.
func FuzzDecode(f *testing.F) {
	data, _ := sample(f)
	f.Add(data[len(fileMagic)+1 : len(data)-4])
	f.Add([]byte{})
	f.Add([]byte{1, 'n', 1, 's', 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 0, 0})
	f.Fuzz(func(t *testing.T, body []byte) {
		if _, err := decode(body); err == nil {
			t.Fatal("taken without magic and checksum")
		}
		file := append(append([]byte(fileMagic), fileVersion), body...)
		sum := checksum(file)
		file = append(file, byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum))
		s, err := decode(file)
		if err != nil {
			return
		}
		m := newMirror(s.name, defaultKeep, defaultHold)
		m.restore(s)
		if len(m.view.Instances) != len(s.live)+len(s.lost) {
			t.Fatalf("%d instances of %d and %d", len(m.view.Instances), len(s.live), len(s.lost))
		}
		again, err := s.encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := decode(again)
		if err != nil || !same(got, s) {
			t.Fatalf("read again it is %+v, %v: want %+v", got, err, s)
		}
	})
}
