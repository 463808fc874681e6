package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/storage"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// recoveryView is what was, or would be, made of a node's folder.
type recoveryView struct {
	Name      string   `json:"name"`
	DryRun    bool     `json:"dry_run"`
	Index     uint64   `json:"index"`
	Term      uint64   `json:"term"`
	Revision  uint64   `json:"revision"`
	Instances int      `json:"instances"`
	Sessions  int      `json:"sessions"`
	Lost      []string `json:"lost"`
	Former    string   `json:"former_cluster_id"`
	ClusterID string   `json:"cluster_id,omitempty"`
	Kept      string   `json:"kept,omitempty"`
}

func newRecoverCmd(a *app) *cobra.Command {
	var dir, logStore string
	var lost []string
	var yes, dry bool
	cmd := &cobra.Command{
		Use:   "recover --data-dir FOLDER --lost NODE,... [flags]",
		Short: "Begin a new cluster with what is left when a majority of the disks is lost.",
		Example: `  # n2 and n3 have lost their disks for good; on n1, which is stopped:
  regd recover --data-dir /var/lib/regd/node --lost n2,n3

  # Two of five are left: the one with the larger term, then index, has more.
  regd recover --data-dir /var/lib/regd/node --lost n2,n3,n5 --dry-run`,
		Long: `Run it on one node, as long as all are stopped: once, as two nodes that are both recovered are two clusters. The node
becomes the only member of a new cluster, with all that its disk has. Then start it, and the other nodes with
empty data folders: they join as new ones. Nodes with data of the former cluster are not heard any more. The folder as it
was is kept beside the new one.

Nothing tells what the lost disks had that this one has not: it is lost. While a majority of the disks is there, this is
refused: those nodes only need to be started.`,
		Annotations: map[string]string{helpAnnotation: "Exit codes: 70 the node still runs, 72 newer, 73 damaged, 74 not writable."},
		Args:        arguments(),
	}
	fs := cmd.Flags()
	fs.StringVar(&dir, "data-dir", "", "`folder` of the node, as in regd serve; required")
	enumVar(fs, &logStore, "log-store", "what keeps the log in it", string(storage.LogStoreBoltDB), string(storage.LogStoreWAL))
	setDefault(fs, "log-store", string(storage.LogStoreBoltDB))
	bindEnv(fs, "data-dir", envName("data-dir"))
	bindEnv(fs, "log-store", envName("log-store"))
	fs.StringSliceVar(&lost, "lost", nil, "`nodes` whose disks are lost for good, by name; required")
	fs.BoolVar(&yes, "yes", false, "do not ask")
	addDryRun(cmd, &dry)
	out := a.addOutput(cmd, formatText, formatJSON, formatYAML)
	cmd.RunE = func(*cobra.Command, []string) error {
		if dir == "" || len(lost) == 0 {
			return usageErrorf("--data-dir and --lost: both must be given")
		}
		logger, err := a.newLogger(a.stderr, "warn", logAuto, nil)
		if err != nil {
			return err
		}
		remains, err := cluster.ReadRemains(dir, storage.LogStore(logStore), logger)
		if err != nil {
			return serveExit(err)
		}
		view, err := planRecovery(remains, lost)
		if err != nil {
			return err
		}
		if view.DryRun = dry; dry {
			return printRecovery(out, view)
		}
		if err = a.confirm(yes, view.Name, view.consequences(dir)...); err != nil {
			return err
		}
		if view.ClusterID, view.Kept, err = remains.Recover(); err != nil {
			return serveExit(err)
		}
		return printRecovery(out, view)
	}
	return cmd
}

// planRecovery refuses to recover what can go on by itself.
func planRecovery(remains *cluster.Remains, lost []string) (recoveryView, error) {
	self := remains.Self.GetName()
	left, err := remains.Without(lost)
	if err != nil {
		return recoveryView{}, &exitError{code: exitNotFound, err: fmt.Errorf("--lost: %w; they are %s", err, names(remains.Voters))}
	}
	if slices.Contains(lost, self) {
		return recoveryView{}, usageErrorf("--lost %s: that is the node in the folder", self)
	}
	if len(left) >= remains.Quorum() {
		return recoveryView{}, &exitError{
			code: exitConflict,
			err:  fmt.Errorf("%s are a majority of the voters %s: nothing is lost", names(left), names(remains.Voters)),
			hint: "start these nodes, each with its data folder",
		}
	}
	counts := remains.State.Counts()
	return recoveryView{
		Name: self, Index: remains.Index, Term: remains.Term, Revision: remains.State.Revision(),
		Instances: counts.Instances, Sessions: counts.Sessions, Lost: lost, Former: remains.State.ClusterID(),
	}, nil
}

func names(members []*registryv1.Member) string {
	var list []string
	for _, m := range members {
		list = append(list, m.GetName())
	}
	return strings.Join(list, ", ")
}

// consequences tell what a recovery means.
func (v recoveryView) consequences(dir string) []string {
	return []string{
		fmt.Sprintf("%s becomes the only member of a new cluster, with %s and %s of revision %d (index %d of term %d)",
			v.Name, plural(v.Instances, "instance"), plural(v.Sessions, "session"), v.Revision, v.Index, v.Term),
		"what only " + strings.Join(v.Lost, ", ") + " had is lost, and no node of the former cluster can come back with its data",
		dir + " is kept as it was, under another name",
	}
}

func printRecovery(out *output, v recoveryView) error {
	if out.isDocument() {
		return out.printDocument(v)
	}
	done := "recovered"
	if v.DryRun {
		done = "would be recovered"
	}
	text := fmt.Sprintf("%s %s\n  holds     %s, %s\n  revision  %d\n  index     %d of term %d\n", clean(v.Name), done,
		plural(v.Instances, "instance"), plural(v.Sessions, "session"), v.Revision, v.Index, v.Term)
	if !v.DryRun {
		text += fmt.Sprintf("  cluster   %s\n  kept      %s\nStart %s, then the others with empty data folders.\n",
			v.ClusterID, clean(v.Kept), clean(v.Name))
	}
	_, err := fmt.Fprint(out.answer(), text)
	return wrapWrite(err)
}
