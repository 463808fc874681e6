package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// Beyond this machine the door needs TLS, which it has when other clients have it, or consent.
func TestConsulDoorBeyondLoopbackNeedsTLSOrConsent(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		listen           string
		secure, insecure bool
		says             string
	}{
		{"", false, false, ""},
		{"127.0.0.1", false, false, ""},
		{"0.0.0.0", false, false, "--consul-listen 0.0.0.0: reaches beyond this machine without TLS"},
		{":8500", false, false, "--consul-listen :8500: reaches beyond this machine without TLS"},
		{"0.0.0.0", true, false, ""},
		{"0.0.0.0", false, true, ""},
	} {
		var faults []error
		d := consulDoor{listen: tt.listen, insecure: tt.insecure}
		d.validate(tt.secure, func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) })
		err := errors.Join(faults...)
		if (err == nil) != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%+v: %v", tt, err)
		}
	}
}
