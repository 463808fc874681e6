package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/regd-io/regd/client"
)

// changeView is one line of a watch.
type changeView struct {
	// Type is put, delete or synced.
	Type     string `json:"type"`
	Revision uint64 `json:"revision"`
	// Time at which it was received here.
	Time      string        `json:"time"`
	Namespace string        `json:"namespace,omitempty"`
	Service   string        `json:"service,omitempty"`
	ID        string        `json:"id,omitempty"`
	Cause     string        `json:"cause,omitempty"`
	Instance  *instanceView `json:"instance,omitempty"`
	// Of synced: where and how fresh.
	Node        string   `json:"node,omitempty"`
	Epoch       uint64   `json:"epoch,omitempty"`
	StalenessMs *float64 `json:"staleness_ms,omitempty"`
}

func viewChange(c client.Change, now time.Time) changeView {
	v := changeView{
		Revision: c.Revision, Time: timestamp(now.UnixMilli()), Namespace: c.Key.Namespace, Service: c.Key.Service, ID: c.Key.ID,
		Cause: enumWord(c.Cause.String(), "CAUSE_"),
	}
	switch c.Kind {
	case client.ChangePut:
		i := viewInstance(c.Instance)
		v.Type, v.Instance = "put", &i
	case client.ChangeDelete:
		v.Type = "delete"
	case client.ChangeSynced:
		v.Type, v.Node, v.Epoch = "synced", c.Node, c.Epoch
		if c.Staleness != client.UnknownStaleness {
			ms := milliseconds(c.Staleness)
			v.StalenessMs = &ms
		}
	case client.ChangeStalled: // Not asked for.
	}
	return v
}

func newWatchCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "watch [SERVICE] [flags]",
		Short: "Show instances as they change, until Ctrl-C.",
		Example: `  regd watch web

  # Every change of all services of all namespaces, one JSON object a line.
  regd watch -n '*' -o jsonl`,
		Long: `First comes what there is, then every change, in order, without gap or repeat, also when the node that serves the watch
goes away. An instance that no longer matches the flags comes as DELETE.`,
		Args: arguments("[SERVICE]"),
	}
	filters := addFilter(cmd)
	out := a.addOutput(cmd, formatText, formatJSONL)
	conn := a.addConnection(cmd)
	cmd.ValidArgsFunction = conn.completeServices
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		filter, err := filters.filter(first(args))
		if err != nil {
			return err
		}
		return conn.callFreely(cmd, func(ctx context.Context, cl *client.Client) error {
			w, err := cl.Watch(ctx, filter)
			if err != nil {
				return err
			}
			defer w.Close()
			return showChanges(ctx, out, w)
		})
	}
	return cmd
}

// showChanges prints changes until ctx ends, which is how a watch is meant to end.
func showChanges(ctx context.Context, out *output, w *client.Watch) error {
	s := &watchScreen{output: out, health: map[client.Key]string{}}
	for c, err := range w.All(ctx) {
		switch {
		case err != nil && ctx.Err() != nil && errors.Is(ctx.Err(), context.Canceled):
			return nil
		case err != nil:
			return err
		}
		v := viewChange(c, time.Now())
		if out.format == formatJSONL {
			err = printJSONL(out.answer(), v)
		} else {
			err = s.show(c.Key, v)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// watchScreen shows changes to people.
type watchScreen struct {
	*output
	health map[client.Key]string // that was shown last
	synced bool
	epoch  uint64
}

func (s *watchScreen) show(key client.Key, v changeView) error {
	if v.Type == "synced" {
		switch {
		case !s.synced:
			s.note("-- that is all there is at revision %d; changes follow, Ctrl-C ends --", v.Revision)
		case s.epoch != v.Epoch:
			s.note("-- the registry was restored from a snapshot: epoch %d, revision %d --", v.Epoch, v.Revision)
		}
		s.synced, s.epoch = true, v.Epoch
		return nil
	}
	p := s.paintFor(s.stdout)
	verb, health, where := "DELETE", "", ""
	if v.Instance != nil {
		verb, health, where = "PUT", v.Instance.Health, v.Instance.endpoint()
	}
	change := p.as(healthColour(health), health)
	if before, known := s.health[key]; known && before != health && health != "" {
		change = p.as(healthColour(before), before) + " -> " + change
	}
	s.health[key] = health
	if verb == "DELETE" {
		delete(s.health, key)
	}
	why := v.Cause
	if why == "" {
		why = "present"
	}
	// Fixed widths: a table can't be laid out before its rows are known.
	line := fmt.Sprintf("%s  %6d  %-6s  %-24s  %-11s  %s", time.Now().Format("15:04:05.000"), v.Revision, verb,
		clean(v.Service+"/"+v.ID), clean(why), clean(where))
	if change != "" {
		line += "  " + change
	}
	_, err := fmt.Fprintln(s.answer(), line)
	return wrapWrite(err)
}
