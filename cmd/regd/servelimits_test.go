package main

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/regd-io/regd/rpc"
)

// Each limit is a setting, with the default of the server, and reaches it under its own name.
func TestLimitsReachTheServer(t *testing.T) {
	t.Parallel()
	var limits limitSettings
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	limits.addFlags(fs)
	var args []string
	for i, l := range limits.all() {
		args = append(args, fmt.Sprintf("--%s=%d", l.flag, 11+i))
	}
	if n := reflect.TypeFor[limitSettings]().NumField(); n != len(args) {
		t.Fatalf("%d of %d limits are settings", len(args), n)
	}
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	var got rpc.Config
	limits.apply(&got)
	want := rpc.Config{MaxConns: 11, MaxConnsPerIP: 12, MaxStreams: 13, MaxInFlight: 14, MaxWatches: 15, MaxLockWaiters: 16}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the server gets %+v, want %+v", got, want)
	}
}

func TestLimitsAreValidated(t *testing.T) {
	t.Parallel()
	for value, ok := range map[int]bool{-1: false, 0: false, 1: true, maxLimit: true, maxLimit + 1: false} {
		var limits limitSettings
		for _, l := range limits.all() {
			*l.value = value
		}
		var faults []string
		limits.validate(func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) })
		for i, l := range limits.all() {
			if ok && len(faults) > 0 || !ok && !strings.HasPrefix(faults[i], fmt.Sprintf("--%s %d: must be 1 to %d", l.flag, value, maxLimit)) {
				t.Errorf("%d: faults %q", value, faults)
			}
		}
	}
}

func TestALimitOfAnotherKindIsAFault(t *testing.T) {
	t.Parallel()
	for setting, says := range map[string]string{
		"--max-watches=many": `--max-watches "many": must be a whole number`,
		"--max-watches=0":    "--max-watches 0: must be 1 to 1000000",
	} {
		if r := newShell(t).run("config", "check", "--data-dir", "d", setting); r.code == exitOK || !strings.Contains(r.stderr, says) {
			t.Errorf("%s: exit code %d and %q, want %q", setting, r.code, r.stderr, says)
		}
	}
}
