package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/regd-io/regd/client"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// maxValueBytes is the most that the registry takes as the value of a key.
const maxValueBytes = 512 << 10

func newKVCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kv [flags]",
		Short: "Keep values under keys.",
		Long: `What services are configured by, and who of them does what. It is no database: all of it is in the memory of every node.
A key has up to 512 bytes, a value up to 512 KiB.`,
		Example: `  regd kv put app/limit 100
  regd kv get app/limit
  regd kv list app/
  regd kv watch app/ --prefix`,
		Args: cobra.ArbitraryArgs,
		RunE: onlySubcommands,
	}
	cmd.AddCommand(newKVGetCmd(a), newKVPutCmd(a), newKVDeleteCmd(a), newKVListCmd(a), newKVWatchCmd(a))
	return cmd
}

// keyView is a key and what is under it.
type keyView struct {
	Namespace string `json:"namespace"`
	Key       string `json:"key"`
	// Value as it is, in base64.
	Value          []byte `json:"value,omitempty"`
	Flags          uint64 `json:"flags,omitempty"`
	CreateRevision uint64 `json:"create_revision"`
	ModifyRevision uint64 `json:"modify_revision"`
	Version        uint64 `json:"version"`
	LockIndex      uint64 `json:"lock_index,omitempty"`
	SessionID      string `json:"session_id,omitempty"`
}

func viewKey(k *registryv1.KeyValue) keyView {
	return keyView{
		Namespace: k.GetNamespace(), Key: k.GetKey(), Value: k.GetValue(), Flags: k.GetFlags(),
		CreateRevision: k.GetCreateRevision(), ModifyRevision: k.GetModifyRevision(), Version: k.GetVersion(),
		LockIndex: k.GetLockIndex(), SessionID: k.GetSessionId(),
	}
}

// short is as much of a value as fits into a table.
func (v keyView) short() string {
	const most = 48
	text := string(v.Value)
	for _, r := range text {
		if r == utf8.RuneError || unicode.IsControl(r) {
			return plural(uint64(len(v.Value)), "byte")
		}
	}
	if runes := []rune(text); len(runes) > most {
		return string(runes[:most]) + "…"
	}
	return text
}

func keyTable() tableOf[keyView] {
	number := func(title string, wide bool, of func(keyView) uint64) column[keyView] {
		return column[keyView]{title: title, right: true, wide: wide, text: func(v keyView) string { return strconv.FormatUint(of(v), 10) }}
	}
	return tableOf[keyView]{
		name: func(v keyView) string { return "key/" + v.Key },
		columns: []column[keyView]{
			{title: "KEY", text: func(v keyView) string { return v.Key }},
			{title: "VALUE", text: keyView.short},
			number("REVISION", false, func(v keyView) uint64 { return v.ModifyRevision }),
			{title: "SESSION", text: func(v keyView) string { return v.SessionID }},
			number("VERSION", true, func(v keyView) uint64 { return v.Version }),
			number("FLAGS", true, func(v keyView) uint64 { return v.Flags }),
		},
	}
}

func newKVGetCmd(a *app) *cobra.Command {
	var namespace string
	cmd := &cobra.Command{
		Use:     "get KEY [flags]",
		Short:   "Print the value of a key, as it is.",
		Example: "  regd kv get app/limit\n  regd kv get app/limit -o json | jq .modify_revision",
		Args:    arguments("KEY"),
	}
	out := a.addOutput(cmd, formatText, formatJSON, formatYAML)
	conn := a.addConnection(cmd)
	addNamespace(cmd, &namespace, "namespace of the key")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return conn.call(cmd, func(ctx context.Context, cl *client.Client) error {
			k, err := cl.KV().Get(ctx, namespace, args[0])
			if err != nil {
				return err
			}
			if out.isDocument() {
				return out.printDocument(viewKey(k))
			}
			_, err = conn.answer().Write(k.GetValue())
			return wrapWrite(err)
		})
	}
	return cmd
}

func newKVPutCmd(a *app) *cobra.Command {
	put := &apiv1.PutKeyRequest{}
	var file string
	cmd := &cobra.Command{
		Use:   "put KEY [VALUE] [flags]",
		Short: "Put a value under a key.",
		Long: `The value is the second argument, or what --file has ("-": standard input), as it is. With --expect it is put only if nobody
has changed the key since, with --absent only if it is not there.`,
		Example: `  regd kv put app/limit 100
  regd kv put app/limit 120 --expect 4711
  regd kv put app/config --file config.yaml`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 {
				return nil
			}
			return arguments("KEY")(cmd, args)
		},
	}
	var namespace string
	fs := cmd.Flags()
	fs.StringVar(&file, "file", "", "`file` that has the value; - is standard input")
	fs.Uint64Var(&put.ExpectedRevision, "expect", 0, "only if this is the revision of the last change")
	fs.BoolVar(&put.MustBeAbsent, "absent", false, "only if the key is not there")
	fs.Uint64Var(&put.Flags, "flags", 0, "a number that is kept beside the value")
	out := a.addOutput(cmd, formatText, formatJSON, formatYAML, formatName)
	conn := a.addConnection(cmd)
	addNamespace(cmd, &namespace, "namespace of the key")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if (len(args) == 2) == (file != "") {
			return usageErrorf("give a value or --file, one of the two")
		}
		put.Namespace, put.Key = namespace, args[0]
		if len(args) == 2 {
			put.Value = []byte(args[1])
		} else if err := readValue(cmd.InOrStdin(), file, &put.Value); err != nil {
			return err
		}
		return conn.call(cmd, func(ctx context.Context, cl *client.Client) error {
			if _, err := cl.KV().Put(ctx, put); err != nil {
				return err
			}
			return out.done(change{Name: "key/" + args[0], Result: "put", Changed: true})
		})
	}
	return cmd
}

// readValue reads a value from a file, and no more than a value may have.
func readValue(stdin io.Reader, file string, value *[]byte) error {
	from := stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return fmt.Errorf("--file: %w", err)
		}
		defer f.Close() //nolint:errcheck // It was only read.
		from = f
	}
	data, err := io.ReadAll(io.LimitReader(from, maxValueBytes+1))
	if err != nil {
		return fmt.Errorf("--file %s: %w", file, err)
	}
	if len(data) > maxValueBytes {
		return usageErrorf("--file %s: has more than %d bytes, the most that a value may have", file, maxValueBytes)
	}
	*value = data
	return nil
}

func newKVDeleteCmd(a *app) *cobra.Command {
	order := &apiv1.DeleteKeyRequest{}
	var namespace string
	cmd := &cobra.Command{
		Use:     "delete KEY [flags]",
		Short:   "Delete a key, or all that begin alike.",
		Example: "  regd kv delete app/limit\n  regd kv delete app/ --prefix",
		Args:    arguments("KEY"),
	}
	cmd.Flags().BoolVar(&order.Prefix, "prefix", false, "delete all keys that begin with KEY")
	cmd.Flags().Uint64Var(&order.ExpectedRevision, "expect", 0, "only if this is the revision of the last change")
	out := a.addOutput(cmd, formatText, formatJSON, formatYAML, formatName)
	conn := a.addConnection(cmd)
	addNamespace(cmd, &namespace, "namespace of the keys")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		order.Namespace, order.Key = namespace, args[0]
		return conn.call(cmd, func(ctx context.Context, cl *client.Client) error {
			changed, err := cl.KV().Delete(ctx, order)
			if err != nil {
				return err
			}
			return out.done(change{Name: "key/" + args[0], Result: "deleted", Changed: changed})
		})
	}
	return cmd
}

func newKVListCmd(a *app) *cobra.Command {
	var namespace string
	var keysOnly bool
	cmd := &cobra.Command{
		Use:     "list [PREFIX] [flags]",
		Short:   "List the keys that begin alike.",
		Example: "  regd kv list app/\n  regd kv list -o jsonl | jq -r .key",
		Args:    arguments("[PREFIX]"),
	}
	cmd.Flags().BoolVar(&keysOnly, "keys-only", false, "leave out the values")
	out := a.addOutput(cmd, formatTable, formatWide, formatJSON, formatYAML, formatJSONL, formatName)
	conn := a.addConnection(cmd)
	addNamespace(cmd, &namespace, "namespace of the keys")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		prefix := ""
		if len(args) > 0 {
			prefix = args[0]
		}
		return conn.call(cmd, func(ctx context.Context, cl *client.Client) error {
			found, err := cl.KV().List(ctx, namespace, prefix, keysOnly)
			if err != nil {
				return err
			}
			views := []keyView{}
			for _, k := range found {
				views = append(views, viewKey(k))
			}
			return printList(out, struct {
				Keys []keyView `json:"keys"`
			}{views}, views, keyTable())
		})
	}
	return cmd
}

// keyChangeView is one line of a watch of keys.
type keyChangeView struct {
	// Type is put, delete or synced.
	Type string `json:"type"`
	// Revision of the change, or up to which all is told. Of a delete the former is not known: it is at most that of the next synced.
	Revision uint64 `json:"revision,omitempty"`
	// Time at which it was received here.
	Time      string   `json:"time"`
	Namespace string   `json:"namespace,omitempty"`
	Key       string   `json:"key,omitempty"`
	KeyValue  *keyView `json:"key_value,omitempty"`
	// Of synced: where and how fresh.
	Node        string   `json:"node,omitempty"`
	Epoch       uint64   `json:"epoch,omitempty"`
	StalenessMs *float64 `json:"staleness_ms,omitempty"`
}

func viewKeyChange(namespace string, c client.KeyChange, now time.Time) keyChangeView {
	v := keyChangeView{Time: timestamp(now.UnixMilli())}
	switch c.Kind {
	case client.ChangePut:
		k := viewKey(c.KeyValue)
		v.Type, v.Namespace, v.Key, v.Revision, v.KeyValue = "put", namespace, c.Key, k.ModifyRevision, &k
	case client.ChangeDelete:
		v.Type, v.Namespace, v.Key = "delete", namespace, c.Key
	case client.ChangeSynced:
		v.Type, v.Revision, v.Node, v.Epoch = "synced", c.Revision, c.Node, c.Epoch
		if c.Staleness != client.UnknownStaleness {
			ms := milliseconds(c.Staleness)
			v.StalenessMs = &ms
		}
	case client.ChangeStalled: // Watches of keys have none.
	}
	return v
}

func newKVWatchCmd(a *app) *cobra.Command {
	watch := &apiv1.WatchKeysRequest{}
	cmd := &cobra.Command{
		Use:   "watch [KEY] [flags]",
		Short: "Show a key as it changes, or all that begin alike, until Ctrl-C.",
		Long: `First comes what there is, then what changes, also when the node that serves the watch goes away. Of changes of one key that
follow closely some may be left out, the last one never is.`,
		Example: `  regd kv watch app/limit
  regd kv watch app/ --prefix

  # All keys of the namespace, one JSON object a line.
  regd kv watch --prefix -o jsonl`,
		Args: arguments("[KEY]"),
	}
	cmd.Flags().BoolVar(&watch.Prefix, "prefix", false, "watch all keys that begin with KEY; without KEY all keys")
	cmd.Flags().BoolVar(&watch.KeysOnly, "keys-only", false, "leave out the values")
	out := a.addOutput(cmd, formatText, formatJSONL)
	conn := a.addConnection(cmd)
	addNamespace(cmd, &watch.Namespace, "namespace of the keys")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) > 0:
			watch.Key = args[0]
		case !watch.Prefix:
			return usageErrorf("%s: missing KEY; --prefix without one watches all keys", cmd.CommandPath())
		}
		return conn.callFreely(cmd, func(ctx context.Context, cl *client.Client) error {
			return showKeyChanges(ctx, out, watch.GetNamespace(), cl.KV().Watch(ctx, watch))
		})
	}
	return cmd
}

// showKeyChanges prints changes until ctx ends, which is how a watch is meant to end.
func showKeyChanges(ctx context.Context, out *output, namespace string, changes iter.Seq2[client.KeyChange, error]) error {
	s := &keyScreen{output: out}
	for c, err := range changes {
		switch {
		case err != nil && errors.Is(ctx.Err(), context.Canceled):
			return nil
		case err != nil:
			return err
		}
		v := viewKeyChange(namespace, c, time.Now())
		if out.format == formatJSONL {
			err = printJSONL(out.answer(), v)
		} else {
			err = s.show(v)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// keyScreen shows changes of keys to people.
type keyScreen struct {
	*output
	synced bool
	epoch  uint64
}

func (s *keyScreen) show(v keyChangeView) error {
	revision, value := "", ""
	switch v.Type {
	case "synced":
		switch {
		case !s.synced:
			s.note("-- that is all there is at revision %d; changes follow, Ctrl-C ends --", v.Revision)
		case s.epoch != v.Epoch:
			s.note("-- the registry was restored from a snapshot: epoch %d, revision %d --", v.Epoch, v.Revision)
		}
		s.synced, s.epoch = true, v.Epoch
		return nil
	case "put":
		revision, value = strconv.FormatUint(v.Revision, 10), v.KeyValue.short()
		if v.KeyValue.SessionID != "" {
			value += "  session " + v.KeyValue.SessionID
		}
	}
	// Fixed widths: a table can't be laid out before its rows are known.
	line := fmt.Sprintf("%s  %6s  %-6s  %-24s  %s", time.Now().Format("15:04:05.000"), revision, strings.ToUpper(v.Type),
		clean(v.Key), clean(value))
	_, err := fmt.Fprintln(s.answer(), strings.TrimRight(line, " "))
	return wrapWrite(err)
}
