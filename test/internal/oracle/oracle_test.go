package oracle_test

import (
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/fsm"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/test/internal/oracle"
)

// entry encodes one that registers the given ids of service web, each as request number of client c.
func entry(t *testing.T, sequence uint64, ids ...string) []byte {
	t.Helper()
	var commands [][]byte
	for i, id := range ids {
		spec, err := proto.Marshal(&registryv1.Instance{Namespace: "default", Service: "web", Id: id, Address: "127.0.0.1"})
		if err != nil {
			t.Fatal(err)
		}
		cmd, err := proto.Marshal(&raftlogv1.Command{
			Request: &raftlogv1.RequestID{ClientId: "c", Sequence: sequence + uint64(i)},
			Kind:    &raftlogv1.Command_Register{Register: &raftlogv1.Register{Instance: spec}},
		})
		if err != nil {
			t.Fatal(err)
		}
		commands = append(commands, cmd)
	}
	return fsm.AppendEntry(nil, 1, commands)
}

func TestTimelineKnowsEveryMoment(t *testing.T) {
	l := oracle.NewLog()
	l.Add("n2", 5, 1, entry(t, 2, "b", "c"))
	l.Add("n1", 3, 1, entry(t, 1, "a"))
	l.Add("n1", 9, 2, entry(t, 2, "b")) // A retry.
	tl, err := l.Replay(fsm.New())
	if err != nil {
		t.Fatal(err)
	}
	for revision, instances := range map[uint64]int{0: 0, 1: 1, 3: 3} {
		if s := tl.AtRevision(revision); s == nil || s.Counts().Instances != instances {
			t.Errorf("at revision %d: %v, want %d instances", revision, s, instances)
		}
	}
	if s := tl.AtRevision(2); s != nil {
		t.Errorf("revision 2 is within an entry, and has the state %v", s)
	}
	if got := tl.AtRevision(3).Index(); got != 9 {
		t.Errorf("the newest state of revision 3 is at index %d, want 9", got)
	}
	for index, revision := range map[uint64]uint64{1: 0, 3: 1, 4: 1, 5: 3, 20: 3} {
		if got := tl.AtIndex(index).Revision(); got != revision {
			t.Errorf("revision %d at index %d, want %d", got, index, revision)
		}
	}
	if got := tl.Between(1, 2); len(got) != 1 || got[0].New.ID() != "b" {
		t.Errorf("events of revision 2: %v", got)
	}
	if got := tl.Request("c", 2); len(got) != 2 || got[0].Outcome.Revision != 2 || got[1].Outcome.Revision != 2 {
		t.Errorf("request 2: %+v, want it twice, both times with revision 2", got)
	}
	if got := tl.Request("c", 7); got != nil {
		t.Errorf("request 7, which never was: %+v", got)
	}
}

func TestDifferentEntriesAtOneIndexAreAClash(t *testing.T) {
	l := oracle.NewLog()
	l.Add("n1", 1, 1, entry(t, 1, "a"))
	l.Add("n2", 1, 1, entry(t, 1, "a"))
	if got := l.Clashes(); len(got) != 0 {
		t.Errorf("clashes %q of equal entries", got)
	}
	l.Add("n3", 1, 1, entry(t, 1, "b"))
	l.Add("n3", 1, 2, entry(t, 1, "a"))
	if got := l.Clashes(); len(got) != 2 {
		t.Errorf("clashes %q, want one of data and one of term", got)
	}
}

func TestAFileCutOffAtItsEndIsReadAsFarAsItGoes(t *testing.T) {
	whole := oracle.AppendEntry(oracle.AppendEntry(nil, 1, 1, entry(t, 1, "a")), 2, 1, entry(t, 2, "b"))
	path := filepath.Join(t.TempDir(), "applied")
	for cut := range whole {
		if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		l := oracle.NewLog()
		if err := l.ReadFile("n1", path); err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		if got, want := len(l.Entries()), cut/(len(whole)/2); got != want {
			t.Fatalf("cut at %d: %d entries, want %d", cut, got, want)
		}
	}
}
