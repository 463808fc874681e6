package main

import (
	"context"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/regd-io/regd/client"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

func newNamespacesCmd(a *app) *cobra.Command {
	cmd := a.listingCmd("namespaces", "List the namespaces with what is in them; bound it.", "  regd namespaces -o wide",
		func(ctx context.Context, cl *client.Client, out *output) error {
			found, err := cl.Namespaces().List(ctx)
			if err != nil {
				return err
			}
			views := []namespaceView{}
			for _, n := range found {
				views = append(views, viewNamespace(n))
			}
			doc := struct {
				Namespaces []namespaceView `json:"namespaces"`
			}{views}
			return printList(out, doc, views, namespaceTable())
		})
	cmd.Long = `A namespace needs no entry: one without is unlimited. Who may see and use what is in it is decided by policies, see
regd access policies.`
	for _, sub := range cmd.Commands() {
		sub.Example = "  regd namespaces list"
	}
	cmd.AddCommand(newShowNamespaceCmd(a), newPutNamespaceCmd(a), newDeleteNamespaceCmd(a))
	return cmd
}

// bounded is how much there is of something, and how much there may be.
type bounded struct {
	Used  *uint64 `json:"used,omitempty"`
	Limit uint64  `json:"limit,omitempty"`
}

// String is "used/limit", without what is not known or not bounded.
func (b bounded) String() string {
	switch {
	case b.Used == nil && b.Limit == 0:
		return ""
	case b.Used == nil:
		return strconv.FormatUint(b.Limit, 10)
	case b.Limit == 0:
		return strconv.FormatUint(*b.Used, 10)
	default:
		return fmt.Sprintf("%d/%d", *b.Used, b.Limit)
	}
}

// full tells whether there is room for no more.
func (b bounded) full() bool { return b.Limit > 0 && b.Used != nil && *b.Used >= b.Limit }

// namespaceView is a namespace, what is in it and what may be.
type namespaceView struct {
	Name        string  `json:"name"`
	Description string  `json:"description,omitempty"`
	Instances   bounded `json:"instances"`
	Locks       bounded `json:"locks"`
	Keys        bounded `json:"keys"`
	KVBytes     bounded `json:"kv_bytes"`
	// Watches are those at the node that answered.
	Watches         bounded `json:"watches"`
	WritesPerSecond bounded `json:"writes_per_second"`
	// Revision of the last change of the entry; 0: there is none.
	Revision uint64 `json:"revision,omitempty"`
}

func viewNamespace(n *apiv1.NamespaceInfo) namespaceView {
	entry, q := n.GetNamespace(), n.GetNamespace().GetQuota()
	used := func(v uint64) *uint64 { return &v }
	return namespaceView{
		Name: entry.GetName(), Description: entry.GetDescription(), Revision: entry.GetModifyRevision(),
		Instances:       bounded{used(n.GetInstances()), q.GetMaxInstances()},
		Locks:           bounded{used(n.GetLocks()), q.GetMaxLocks()},
		Keys:            bounded{used(n.GetKeys()), q.GetMaxKeys()},
		KVBytes:         bounded{used(n.GetKvBytes()), q.GetMaxKvBytes()},
		Watches:         bounded{used(n.GetWatches()), q.GetMaxWatches()},
		WritesPerSecond: bounded{nil, q.GetMaxWritesPerSecond()},
	}
}

func namespaceTable() tableOf[namespaceView] {
	cell := func(title string, of func(namespaceView) bounded) column[namespaceView] {
		return column[namespaceView]{
			title: title, right: true,
			text: func(v namespaceView) string { return of(v).String() },
			colour: func(v namespaceView) string {
				if of(v).full() {
					return colourWarn
				}
				return ""
			},
		}
	}
	return tableOf[namespaceView]{
		name: func(v namespaceView) string { return "namespace/" + v.Name },
		columns: []column[namespaceView]{
			{title: "NAME", text: func(v namespaceView) string { return v.Name }},
			cell("INSTANCES", func(v namespaceView) bounded { return v.Instances }),
			cell("LOCKS", func(v namespaceView) bounded { return v.Locks }),
			cell("KEYS", func(v namespaceView) bounded { return v.Keys }),
			cell("KV BYTES", func(v namespaceView) bounded { return v.KVBytes }),
			cell("WATCHES", func(v namespaceView) bounded { return v.Watches }),
			cell("WRITES/S", func(v namespaceView) bounded { return v.WritesPerSecond }),
			{title: "DESCRIPTION", text: func(v namespaceView) string { return v.Description }},
			{title: "REVISION", wide: true, text: func(v namespaceView) string { return v.revision() }},
		},
	}
}

func (v namespaceView) revision() string {
	if v.Revision == 0 {
		return ""
	}
	return strconv.FormatUint(v.Revision, 10)
}

func newShowNamespaceCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "show NAME [flags]",
		Short:   "Show what is in a namespace and what may be.",
		Example: "  regd namespaces show team-a\n  regd namespaces show team-a -o json | jq .instances.used",
		Args:    arguments("NAME"),
	}
	out := a.addOutput(cmd, formatText, formatJSON, formatYAML)
	conn := a.addConnection(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return conn.call(cmd, func(ctx context.Context, cl *client.Client) error {
			n, err := cl.Namespaces().Get(ctx, args[0])
			if err != nil {
				return err
			}
			v := viewNamespace(n)
			if out.isDocument() {
				return out.printDocument(v)
			}
			return v.print(a.answer())
		})
	}
	return cmd
}

func (v namespaceView) print(w io.Writer) error {
	text := clean(v.Name)
	if v.Description != "" {
		text += "  " + clean(v.Description)
	}
	text += "\n"
	for _, row := range [...]struct {
		name string
		of   bounded
		note string
	}{
		{"instances", v.Instances, ""},
		{"locks", v.Locks, "owners and places in queues"},
		{"keys", v.Keys, ""},
		{"bytes of keys", v.KVBytes, "and their values"},
		{"watches", v.Watches, "at the node that answered; the limit is that of each"},
		{"writes per second", v.WritesPerSecond, "that each node takes"},
	} {
		value, note := row.of.String(), row.note
		if row.of.Limit == 0 {
			value, note = value+" unlimited", ""
		}
		if row.of.full() {
			note = "full: no more are let in"
		}
		line := fmt.Sprintf("  %-18s %s", row.name, value)
		if row.of.Used == nil && row.of.Limit == 0 {
			line = fmt.Sprintf("  %-18s unlimited", row.name)
		}
		if note != "" {
			line += "  (" + note + ")"
		}
		text += line + "\n"
	}
	if v.Revision == 0 {
		text += "  nothing was said about it: regd namespaces put " + clean(v.Name) + "  bounds it\n"
	}
	_, err := io.WriteString(w, text)
	return wrapWrite(err)
}

func newPutNamespaceCmd(a *app) *cobra.Command {
	entry := &registryv1.Namespace{Quota: &registryv1.Quota{}}
	cmd := &cobra.Command{
		Use:   "put NAME [flags]",
		Short: "Bound what may be in a namespace, in place of what was said before.",
		Long: `What is not given is unlimited. A limit below what there is refuses what is new and removes nothing. Instances, locks
and keys are bounded in the whole cluster, watches and writes at each node.`,
		Example: `  regd namespaces put team-a --max-instances 500 --max-locks 100
  regd namespaces put ci --max-instances 50 --max-writes 20 --description builds`,
		Args: arguments("NAME"),
	}
	q := entry.GetQuota()
	cmd.Flags().Uint64Var(&q.MaxInstances, "max-instances", 0, "instances over all services; 0: unlimited")
	cmd.Flags().Uint64Var(&q.MaxLocks, "max-locks", 0, "owners of locks and places in their queues; 0: unlimited")
	cmd.Flags().Uint64Var(&q.MaxKeys, "max-keys", 0, "keys; 0: unlimited")
	cmd.Flags().Uint64Var(&q.MaxKvBytes, "max-kv-bytes", 0, "bytes of keys and their values together; 0: unlimited")
	cmd.Flags().Uint64Var(&q.MaxWatches, "max-watches", 0, "watches at each node; 0: unlimited")
	cmd.Flags().Uint64Var(&q.MaxWritesPerSecond, "max-writes", 0, "writes per second that each node takes; 0: unlimited")
	cmd.Flags().StringVar(&entry.Description, "description", "", "for people")
	out := a.addOutput(cmd, formatText, formatJSON, formatYAML, formatName)
	conn := a.addConnection(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		entry.Name = args[0]
		return conn.call(cmd, func(ctx context.Context, cl *client.Client) error {
			changed, err := cl.Namespaces().Put(ctx, entry)
			if err != nil {
				return err
			}
			return out.done(change{Name: "namespace/" + args[0], Result: "put", Changed: changed})
		})
	}
	return cmd
}

func newDeleteNamespaceCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "delete NAME [flags]",
		Short:   "Take back what was said about a namespace: it is unlimited, and what is in it stays.",
		Example: "  regd namespaces delete team-a",
		Args:    arguments("NAME"),
	}
	out := a.addOutput(cmd, formatText, formatJSON, formatYAML, formatName)
	conn := a.addConnection(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return conn.call(cmd, func(ctx context.Context, cl *client.Client) error {
			changed, err := cl.Namespaces().Delete(ctx, args[0])
			if err != nil {
				return err
			}
			return out.done(change{Name: "namespace/" + args[0], Result: "deleted", Changed: changed})
		})
	}
	return cmd
}
