package main

import (
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestTheTableHasMediansAndTheRatioThatIsBetter(t *testing.T) {
	r := newReport(options{rounds: 3, commit: "abc"})
	rate := job{name: "write", unit: "/s", goal: 2}
	delay := job{name: "fail over", unit: "ms", goal: 1.4, less: true}
	for _, v := range []float64{3000, 1000, 2000} {
		r.add(rate, figure{System: "regd", Value: v})
		r.add(rate, figure{System: "etcd", Value: v / 4})
	}
	r.add(delay, figure{System: "regd", Value: 50})
	r.add(delay, figure{System: "etcd", Value: 100})
	var text strings.Builder
	r.markdown(&text)
	for _, want := range []string{
		"| write | 2000 /s (1000 /s to 3000 /s) | 500 /s (250 /s to 750 /s) | 4.00x | 2x |",
		"| fail over | 50 ms (50 ms to 50 ms) | 100 ms (100 ms to 100 ms) | 2.00x | 1.4x |",
	} {
		if !strings.Contains(text.String(), want+"\n") {
			t.Errorf("no line %q in\n%s", want, text.String())
		}
	}
}

func TestTheTableHasMediansOfWhatAnOperationCosts(t *testing.T) {
	r := newReport(options{rounds: 3})
	read, kill := job{name: "read", unit: "/s"}, job{name: "kill", unit: "ms"}
	took := newTimes()
	for _, ms := range []int{1, 1, 1, 9} {
		took.add(time.Duration(ms) * time.Millisecond)
	}
	latency := took.take()
	for _, cpu := range []time.Duration{3, 1, 2} {
		r.add(read, newFigure("regd", result{value: 1, operations: 1000, cpu: cpu * time.Second, latency: latency}, 64<<20))
	}
	r.add(kill, newFigure("etcd", result{value: 7}, 0))
	var text strings.Builder
	r.markdown(&text)
	for _, want := range []string{
		"| read | 2000 µs | - | 1, 9 ms | - | 64 MiB | - |",
		"| kill | - | - | - | - | - | - |",
	} {
		if !strings.Contains(text.String(), want+"\n") {
			t.Errorf("no line %q in\n%s", want, text.String())
		}
	}
}

func TestJobsThatShareAClusterHaveARowEach(t *testing.T) {
	r := newReport(options{rounds: 2})
	fill, cold := job{name: "fill", unit: "kB"}, job{name: "cold", unit: "s"}
	for range 2 {
		for _, system := range []string{"regd", "etcd"} {
			r.add(fill, figure{System: system, Value: 1})
			r.add(cold, figure{System: system, Value: 2})
		}
	}
	if len(r.Rows) != 2 || len(r.Rows[0].Figures) != 4 || len(r.Rows[1].Figures) != 4 || r.Rows[1].median("etcd", valueOf) != 2 {
		t.Errorf("rows %+v", r.Rows)
	}
}

func TestAJobIsDoneForOneThatComesAfterIt(t *testing.T) {
	fill := job{name: "fill", then: &job{name: "cold"}}
	for only, want := range map[string]bool{"fill": true, "cold": true, "read": false} {
		if got := fill.asked(options{only: regexp.MustCompile(only)}); got != want {
			t.Errorf("asked for %s: %v, want %v", only, got, want)
		}
	}
}

func TestAJobWithoutEtcdHasNoRatio(t *testing.T) {
	r := newReport(options{rounds: 1})
	r.add(job{name: "write", unit: "/s"}, figure{System: "regd", Value: 1})
	if got := r.Rows[0].ratio(); got != 0 {
		t.Errorf("ratio %v", got)
	}
}
