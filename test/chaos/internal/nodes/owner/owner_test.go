package owner_test

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/regd-io/regd/test/chaos/internal/nodes/owner"
)

func TestOnlyWhatADeadProcessNamedIsDead(t *testing.T) {
	ended := exec.Command("true")
	if err := ended.Run(); err != nil {
		t.Fatal(err)
	}
	unreaped := exec.Command("true")
	if err := unreaped.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unreaped.Wait() }()
	name := func(kind string, pid int) string { return fmt.Sprintf("regd-%s-%d-x", kind, pid) }
	for deadline := time.Now().Add(10 * time.Second); !owner.Dead("kind", name("kind", unreaped.Process.Pid)); {
		if time.Now().After(deadline) {
			t.Fatal("a process that has ended and was not waited for counts as living")
		}
		time.Sleep(time.Millisecond)
	}
	for name, dead := range map[string]bool{
		owner.Tag("kind") + "x":               false,
		name("kind", os.Getppid()):            false,
		name("kind", ended.Process.Pid):       true,
		name("other", ended.Process.Pid):      false,
		"x" + name("kind", ended.Process.Pid): false,
		"regd-kind-x-y":                       false,
		"regd-kind-4":                         false,
		"":                                    false,
	} {
		if got := owner.Dead("kind", name); got != dead {
			t.Errorf("%q: dead %v, want %v", name, got, dead)
		}
	}
}
