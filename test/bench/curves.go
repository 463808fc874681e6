package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"time"
)

// curve is how regd does with its size.
type curve struct {
	name  string
	of    string // what the size is of
	sizes []int
	// perSize has a cluster of as many nodes as the size says.
	perSize bool
	// measure measures at one size, on a cluster of its own. Each part of it takes so long.
	measure func(ctx context.Context, c *cluster, size int, last time.Duration) ([]measured, error)
}

// measured is one figure of a point. The points of a curve have the same ones, in the same order.
type measured struct {
	Name  string  `json:"name"`
	Unit  string  `json:"unit"`
	Value float64 `json:"value"`
}

func (m measured) text() string { return number(m.Value) + " " + m.Unit }

// point is what was measured at a size.
type point struct {
	Size   int        `json:"size"`
	Values []measured `json:"values"`
}

// drawn is a curve as it was measured, smallest size first.
type drawn struct {
	Name   string  `json:"name"`
	Of     string  `json:"of"`
	Points []point `json:"points"`
}

// curves are all that there are.
func curves() []curve {
	const k, m = 1000, 1_000_000
	return []curve{
		{name: "instances", of: "instances", sizes: []int{k, 10 * k, 100 * k, m}, measure: atFill},
		{name: "snapshots", of: "instances", sizes: []int{100 * k, m}, measure: atSnapshots},
		{name: "subscriptions", of: "subscriptions, 10000 on a stream", sizes: []int{100, k, 10 * k, 50 * k}, measure: watched(subscriptions)},
		{name: "streams", of: "streams with one subscription", sizes: []int{100, k, 10 * k}, measure: watched(streams)},
		{name: "sessions", of: "sessions", sizes: []int{k, 10 * k, 100 * k}, measure: atSessions},
		{name: "nodes", of: "nodes", sizes: []int{1, 3, 5}, perSize: true, measure: atNodes},
		{name: "payload", of: "bytes of metadata", sizes: []int{100, k, 4 * k}, measure: atPayload}, // The API takes 4 KiB.
		{name: "behind", of: "revisions behind", sizes: []int{0, k, 10 * k, 100 * k}, measure: atBehind},
	}
}

// draw measures the curves that are asked for, up to the size that is. One that fails has the points before.
func draw(ctx context.Context, o options) ([]drawn, error) {
	var list []drawn
	var failed error
	for _, c := range chosen(curves(), o.curves, o.most) {
		d := drawn{Name: c.name, Of: c.of}
		for _, size := range c.sizes {
			p, err := at(ctx, o, c, size)
			if err != nil {
				failed = errors.Join(failed, fmt.Errorf("curve %s at %d %s: %w", c.name, size, c.of, err))
				break
			}
			d.Points = append(d.Points, p)
			for _, m := range p.Values {
				fmt.Fprintf(os.Stderr, "%-14s %8d: %-40s %s\n", c.name, size, m.Name, m.text())
			}
		}
		if len(d.Points) > 0 {
			list = append(list, d)
		}
		if ctx.Err() != nil {
			break
		}
	}
	return list, failed
}

// chosen are the curves whose names match, with their sizes up to most. nil chooses none.
func chosen(all []curve, names *regexp.Regexp, most int) []curve {
	var list []curve
	for _, c := range all {
		if names == nil || !names.MatchString(c.name) {
			continue
		}
		var sizes []int
		for _, s := range c.sizes {
			if s <= most {
				sizes = append(sizes, s)
			}
		}
		c.sizes = sizes
		list = append(list, c)
	}
	return list
}

// at measures a point.
func at(ctx context.Context, o options, c curve, size int) (point, error) {
	n := nodes
	if c.perSize {
		n = size
	}
	p := point{Size: size}
	err := onCluster(ctx, &regd{binary: o.regd, logStore: o.logStore}, n, o.out, func(on *cluster) (err error) {
		p.Values, err = c.measure(ctx, on, size, o.last)
		return err
	})
	return p, err
}

// rated is a rate with what one of its operations costs the servers.
func rated(name string, r result) []measured {
	return []measured{
		{Name: name, Unit: "/s", Value: r.value},
		{Name: name + ": CPU each", Unit: "µs", Value: microseconds(r.cpu, r.operations)},
	}
}

func atSessions(ctx context.Context, c *cluster, size int, last time.Duration) ([]measured, error) {
	r, err := renewing(size)(ctx, c, last)
	return rated("renewals", r), err
}

func atNodes(ctx context.Context, c *cluster, _ int, last time.Duration) ([]measured, error) {
	writes, err := registering(atLeader, 64, 0)(ctx, c, last)
	if err != nil {
		return nil, err
	}
	reads, err := reading(64, true)(ctx, c, last)
	return append(rated("registrations", writes), rated("linearizable reads", reads)...), err
}

func atPayload(ctx context.Context, c *cluster, size int, last time.Duration) ([]measured, error) {
	r, err := registering(atLeader, 64, size)(ctx, c, last)
	return rated("registrations", r), err
}
