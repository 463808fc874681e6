package main

import (
	"strings"
	"testing"
)

type resolvedDoc struct {
	Policy    string         `json:"policy"`
	Instances []resolvedView `json:"instances"`
}

func TestResolveSaysWhoIsChosenAndWhy(t *testing.T) {
	t.Parallel()
	s, _ := startNode(t)
	for id, flags := range map[string]string{
		"w1": "--zone a --weight 3", "w2": "--zone b --weight 1", "w3": "--zone b --weight 5",
	} {
		s.ok(strings.Fields("register web --id " + id + " --address 10.0.0." + id[1:] + " --port http=80 --port admin=81 --detach " + flags)...)
	}
	s.ok("drain", "web", "w3")
	of := func(flags string) resolvedDoc {
		return decode[resolvedDoc](t, s.ok(append([]string{"resolve", "web", "-o", "json"}, strings.Fields(flags)...)...))
	}
	type line struct {
		id, endpoint, reason string
		share                float64
	}
	for flags, want := range map[string][]line{
		"": {{"w1", "10.0.0.1:80", "", 0.75}, {"w2", "10.0.0.2:80", "", 0.25}, {"w3", "10.0.0.3:80", "draining", 0}},
		"--policy round-robin --port admin": {
			{"w1", "10.0.0.1:81", "", 0.5}, {"w2", "10.0.0.2:81", "", 0.5}, {"w3", "10.0.0.3:81", "draining", 0},
		},
		"--from-zone b": {{"w2", "10.0.0.2:80", "", 1}, {"w1", "10.0.0.1:80", "", 0}, {"w3", "10.0.0.3:80", "draining", 0}},
	} {
		got := of(flags)
		for i, w := range want {
			if v := got.Instances[i]; (line{v.ID, v.Endpoint, v.Reason, v.Share}) != w {
				t.Errorf("resolve %s: line %d is %+v, want %+v", flags, i, line{v.ID, v.Endpoint, v.Reason, v.Share}, w)
			}
		}
	}
	first := of("--policy rendezvous --key user-42").Instances[0]
	if first.Share != 1 {
		t.Errorf("a key goes to %s with probability %v", first.ID, first.Share)
	}
	for range 3 {
		s.expect(first.Endpoint+"\n", s.ok("resolve", "web", "--policy", "rendezvous", "--key", "user-42", "--one"))
	}
	s.ok("drain", "web", "w1")
	s.ok("drain", "web", "w2")
	for args, want := range map[string]string{
		"resolve web --one":            "draining",
		"resolve wbe":                  `no instances of wbe in namespace default; did you mean "web"?`,
		"resolve web --zone elsewhere": "no instances of web in namespace default\n",
	} {
		if r := s.run(strings.Fields(args)...); r.code != exitNotFound || !strings.Contains(r.stderr, want) {
			t.Errorf("%s: exit %d, %s", args, r.code, r.stderr)
		}
	}
	if r := s.run("instances", "wbe"); r.code != exitOK || !strings.Contains(r.stderr, `did you mean "web"?`) {
		t.Errorf("instances wbe: exit %d, %s", r.code, r.stderr)
	}
}
