package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// calledView says how an instance did in many calls.
type calledView struct {
	ID      string `json:"id"`
	Address string `json:"address,omitempty"`
	Zone    string `json:"zone,omitempty"`
	// Calls that it answered or that failed on it in the end. OK: with an answer that is good. Retried: tries on it in vain
	// before another instance was called.
	Calls   int `json:"calls"`
	OK      int `json:"ok"`
	Retried int `json:"retried"`
	// Milliseconds of calls that were answered, with the tries before.
	P50Ms float64 `json:"p50_ms"`
	P99Ms float64 `json:"p99_ms"`
	MaxMs float64 `json:"max_ms"`
	Error string  `json:"error,omitempty"` // the last one

	times *hdrhistogram.Histogram // ns
}

// tally gathers what became of many calls.
type tally struct {
	rows     map[string]*calledView
	statuses map[string]int
	bad      error // what the last call that went wrong ends the command with
	wrong    int
}

// many makes calls one after the other, and sums up.
func (f *callFlags) many(ctx context.Context, out *output, to *callTarget, c caller) error {
	sum := &tally{rows: map[string]*calledView{}, statuses: map[string]int{}}
	for _, s := range to.fit() {
		sum.row(s.Instance.GetId()).Zone = s.Instance.GetZone()
	}
	if isTerminal(out.stderr) {
		p := out.newProgress()
		defer p.end()
		p.phase("%d calls", f.count)
	}
	begun := time.Now()
	made := 0
	for ; made < f.count && f.pause(ctx, begun, made); made++ {
		v := f.one(ctx, to, c)
		if ctx.Err() != nil {
			break // Half a call is none.
		}
		sum.add(v, f.judge(v))
	}
	list := make([]*calledView, 0, len(sum.rows))
	for _, id := range slices.Sorted(maps.Keys(sum.rows)) {
		list = append(list, sum.rows[id].summed())
	}
	doc := struct {
		Service   string         `json:"service"`
		Namespace string         `json:"namespace"`
		Policy    string         `json:"policy"`
		Calls     int            `json:"calls"`
		TookMs    float64        `json:"took_ms"`
		Statuses  map[string]int `json:"statuses"`
		Instances []*calledView  `json:"instances"`
	}{to.service, to.namespace, to.why.Policy, made, milliseconds(time.Since(begun)), sum.statuses, list}
	if err := printList(out, doc, list, calledTable()); err != nil {
		return err
	}
	if !out.isDocument() {
		out.note("%d calls in %v: %s", made, time.Since(begun).Round(time.Millisecond), clean(sum.text()))
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if sum.bad != nil {
		hint := ""
		if last, ok := errors.AsType[*exitError](sum.bad); ok {
			hint = last.hint
		}
		return &exitError{code: codeOf(sum.bad), err: fmt.Errorf("%d of %d calls went wrong; the last: %w", sum.wrong, made, sum.bad), hint: hint}
	}
	return nil
}

// pause waits until a call is due, and tells whether to make it.
func (f *callFlags) pause(ctx context.Context, begun time.Time, number int) bool {
	if f.rate == 0 {
		return ctx.Err() == nil
	}
	early := time.NewTimer(time.Until(begun.Add(time.Duration(float64(number) / f.rate * float64(time.Second)))))
	defer early.Stop()
	select {
	case <-early.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// row returns the row of an instance.
func (t *tally) row(id string) *calledView {
	if t.rows[id] == nil {
		const digits = 3
		t.rows[id] = &calledView{ID: id, times: hdrhistogram.New(1, int64(time.Hour), digits)}
	}
	return t.rows[id]
}

// add counts a call, and what it would have ended the command with.
func (t *tally) add(v *callView, err error) {
	for i, at := range v.Attempts {
		row := t.row(at.Instance)
		row.Address = at.Address
		if i < len(v.Attempts)-1 {
			row.Retried++
			row.Error = at.Error
		}
	}
	row := t.row(v.last().Instance)
	row.Calls++
	switch {
	case v.err != nil:
		row.Error = v.Error
		t.statuses["no answer"]++
	default:
		_ = row.times.RecordValue(int64(min(v.took, time.Hour))) // In range.
		t.statuses[v.Status]++
		if v.good {
			row.OK++
		} else {
			row.Error = v.Status
		}
	}
	if err != nil {
		t.bad = err
		t.wrong++
	}
}

// text says how many calls ended how.
func (t *tally) text() string {
	var parts []string
	for _, status := range slices.Sorted(maps.Keys(t.statuses)) {
		parts = append(parts, fmt.Sprintf("%s: %d", status, t.statuses[status]))
	}
	return strings.Join(parts, ", ")
}

// summed fills in the times.
func (v *calledView) summed() *calledView {
	at := func(quantile float64) float64 { return milliseconds(time.Duration(v.times.ValueAtQuantile(quantile))) }
	v.P50Ms, v.P99Ms, v.MaxMs = at(50), at(99), milliseconds(time.Duration(v.times.Max()))
	return v
}

func calledTable() tableOf[*calledView] {
	count := func(get func(*calledView) int) func(*calledView) string {
		return func(v *calledView) string { return strconv.Itoa(get(v)) }
	}
	ms := func(get func(*calledView) float64) func(*calledView) string {
		return func(v *calledView) string {
			if v.times.TotalCount() == 0 {
				return ""
			}
			return inMs(get(v))
		}
	}
	return tableOf[*calledView]{
		name: func(v *calledView) string { return v.ID },
		columns: []column[*calledView]{
			{title: "ID", text: func(v *calledView) string { return v.ID }},
			{title: "ENDPOINT", text: func(v *calledView) string { return v.Address }},
			{title: "ZONE", text: func(v *calledView) string { return v.Zone }},
			{title: "CALLS", right: true, text: count(func(v *calledView) int { return v.Calls })},
			{title: "OK", right: true, text: count(func(v *calledView) int { return v.OK })},
			{title: "RETRIED", right: true, text: count(func(v *calledView) int { return v.Retried })},
			{title: "P50", right: true, text: ms(func(v *calledView) float64 { return v.P50Ms })},
			{title: "P99", right: true, text: ms(func(v *calledView) float64 { return v.P99Ms })},
			{title: "MAX", right: true, text: ms(func(v *calledView) float64 { return v.MaxMs })},
			{title: "LAST ERROR", text: func(v *calledView) string { return v.Error }},
		},
	}
}
