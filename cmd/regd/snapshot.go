package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

func newSnapshotCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot [flags]",
		Short: "Save, restore and inspect snapshots of the registry.",
		Example: `  regd snapshot save backup.regd
  regd snapshot inspect backup.regd
  regd snapshot restore backup.regd`,
		Args: cobra.ArbitraryArgs,
		RunE: onlySubcommands,
	}
	cmd.AddCommand(newSnapshotSaveCmd(a), newSnapshotRestoreCmd(a), newSnapshotInspectCmd(a))
	return cmd
}

func newSnapshotSaveCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "save FILE [flags]",
		Short: "Save a snapshot of the whole registry.",
		Example: `  regd snapshot save backup.regd

  # From a follower, at the price of an age of up to 5 s.
  regd snapshot save backup.regd --freshness bounded=5s`,
		Long: "The file appears under its name once it is complete, checked and on disk. An older one is replaced.",
		Args: arguments("FILE"),
	}
	fresh := addFreshness(cmd)
	out := a.addOutput(cmd, formatText, formatJSON, formatYAML)
	conn := a.addConnection(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return conn.callFreely(cmd, func(ctx context.Context, cl *client.Client) error {
			view, err := a.saveSnapshot(ctx, cl, args[0], fresh.option)
			if err != nil {
				return err
			}
			return printSnapshot(out, view, "saved")
		})
	}
	return cmd
}

// saveSnapshot writes a snapshot beside the file, checks it, and gives it its name.
func (a *app) saveSnapshot(ctx context.Context, cl *client.Client, path string, fresh client.ReadOption) (snapshotView, error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".part-")
	if err != nil {
		return snapshotView{}, fmt.Errorf("save snapshot: %w", err)
	}
	defer func() {
		_ = f.Close()           // Closed already if all went well.
		_ = os.Remove(f.Name()) // Renamed already if all went well.
	}()
	p := a.newProgress()
	defer p.end()
	begun := time.Now()
	buffered := bufio.NewWriterSize(f, 1<<20)
	info, err := cl.Cluster().SaveSnapshot(ctx, buffered, func(written int64) {
		p.phase("saving: %s, %s/s", bytesText(uint64(written)), rate(written, begun))
	}, fresh)
	if err != nil {
		return snapshotView{}, err
	}
	p.phase("checking and writing to disk")
	if err = errors.Join(buffered.Flush(), f.Sync()); err != nil {
		return snapshotView{}, fmt.Errorf("save snapshot: %w", err)
	}
	view, err := inspectSnapshot(f)
	if err == nil && view.ContentHash != viewSnapshot(info).ContentHash {
		err = errors.New("it differs from what the node said it would send")
	}
	if err != nil {
		return snapshotView{}, fmt.Errorf("save snapshot: what arrived is unusable: %w", err)
	}
	if err := errors.Join(f.Close(), os.Rename(f.Name(), path)); err != nil {
		return snapshotView{}, fmt.Errorf("save snapshot: %w", err)
	}
	view.File = path
	return view, nil
}

func rate(done int64, since time.Time) string {
	return bytesText(uint64(float64(done) / max(time.Since(since).Seconds(), 0.001)))
}

func newSnapshotRestoreCmd(a *app) *cobra.Command {
	var yes, dry bool
	cmd := &cobra.Command{
		Use:   "restore FILE [flags]",
		Short: "Replace the registry's content by a snapshot.",
		Example: `  regd snapshot restore backup.regd

  # What would be replaced by what?
  regd snapshot restore backup.regd --dry-run

  # In a script.
  regd snapshot restore backup.regd --yes`,
		Long: `Services, instances, sessions, leases and locks become those of the snapshot; the cluster keeps its nodes. A new epoch
begins: watchers get the difference, and clients that are alive register again what the snapshot lacks.`,
		Args: arguments("FILE"),
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	addDryRun(cmd, &dry)
	out := a.addOutput(cmd, formatText, formatJSON, formatYAML)
	conn := a.addConnection(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		f, err := os.Open(args[0])
		if err != nil {
			return &exitError{code: exitNotFound, err: fmt.Errorf("restore snapshot: %w", err)}
		}
		defer f.Close() //nolint:errcheck // Only read.
		view, err := inspectSnapshot(f)
		if err != nil {
			return fmt.Errorf("restore snapshot: %s: %w", args[0], err)
		}
		if dry {
			return conn.call(cmd, func(ctx context.Context, cl *client.Client) error { return out.planRestore(ctx, cl, args[0], view) })
		}
		return conn.callFreely(cmd, func(ctx context.Context, cl *client.Client) error {
			if err := a.confirmRestore(ctx, cl, yes, view); err != nil {
				return err
			}
			resp, err := a.restoreSnapshot(ctx, cl, f, view.Bytes)
			if err != nil {
				return err
			}
			view.File, view.Epoch, view.Revision = args[0], resp.GetHeader().GetEpoch(), resp.GetHeader().GetRevision()
			return printSnapshot(out, view, "restored")
		})
	}
	return cmd
}

// confirmRestore says what is there now and what will be.
func (a *app) confirmRestore(ctx context.Context, cl *client.Client, yes bool, view snapshotView) error {
	if yes {
		return nil
	}
	status, err := cl.Cluster().Status(ctx)
	if err != nil {
		return err
	}
	return a.confirm(yes, "restore",
		fmt.Sprintf("the registry's %s, %s and %s will be replaced", plural(status.GetInstances(), "instance"),
			plural(status.GetSessions(), "session"), plural(status.GetLocks(), "lock")),
		fmt.Sprintf("by %s, %s and %s of revision %d", plural(view.Instances, "instance"), plural(view.Sessions, "session"),
			plural(view.Locks, "lock"), view.Revision))
}

func (a *app) restoreSnapshot(ctx context.Context, cl *client.Client, f io.ReadSeeker, size int64) (*apiv1.RestoreSnapshotResponse, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("restore snapshot: %w", err)
	}
	p := a.newProgress()
	defer p.end()
	begun := time.Now()
	return cl.Cluster().RestoreSnapshot(ctx, f, func(sent int64) {
		p.phase("restoring: %d %% of %s, %s/s", 100*sent/max(size, 1), bytesText(uint64(size)), rate(sent, begun))
	})
}

func newSnapshotInspectCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "inspect FILE [flags]",
		Short:   "Check a snapshot and tell what it holds. Needs no cluster.",
		Example: "  regd snapshot inspect backup.regd\n  regd snapshot inspect backup.regd -o json | jq .instances",
		Args:    arguments("FILE"),
	}
	out := a.addOutput(cmd, formatText, formatJSON, formatYAML)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		f, err := os.Open(args[0])
		if err != nil {
			return &exitError{code: exitNotFound, err: fmt.Errorf("inspect snapshot: %w", err)}
		}
		defer f.Close() //nolint:errcheck // Only read.
		view, err := inspectSnapshot(f)
		if err != nil {
			return fmt.Errorf("inspect snapshot: %s: %w", args[0], err)
		}
		view.File = args[0]
		return printSnapshot(out, view, "sound")
	}
	return cmd
}

// inspectSnapshot reads a snapshot whole, with all its checksums.
func inspectSnapshot(f io.ReadSeeker) (snapshotView, error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return snapshotView{}, err
	}
	header, err := fsm.ReadSnapshotHeader(f)
	if err != nil {
		return snapshotView{}, err
	}
	if _, err = f.Seek(0, io.SeekStart); err != nil {
		return snapshotView{}, err
	}
	st, err := fsm.ReadSnapshot(bufio.NewReaderSize(f, 1<<20))
	if err != nil {
		return snapshotView{}, err
	}
	counts, hash := st.Counts(), st.ContentHash()
	v := viewSnapshot(&apiv1.SnapshotInfo{
		ClusterId: st.ClusterID(), Index: st.Index(), Term: st.Term(), Revision: st.Revision(), Epoch: st.Epoch(),
		ContentHash: hash[:], Instances: uint64(counts.Instances), Sessions: uint64(counts.Sessions),
		Leases: uint64(counts.Leases), Locks: uint64(counts.Locks), Version: header.GetVersion(),
	})
	v.Bytes = size
	return v, nil
}

// printSnapshot tells what a snapshot holds.
func printSnapshot(out *output, v snapshotView, done string) error {
	if out.isDocument() {
		return out.printDocument(v)
	}
	_, err := fmt.Fprintf(out.answer(), `%s %s, %s
  holds     %s, %s, %s, %s
  revision  %d of epoch %d
  index     %d of term %d
  cluster   %s
  content   %s
`, clean(v.File), done, bytesText(uint64(v.Bytes)), plural(v.Instances, "instance"), plural(v.Sessions, "session"),
		plural(v.Leases, "lease"), plural(v.Locks, "lock"), v.Revision, v.Epoch,
		v.Index, v.Term, v.ClusterID, v.ContentHash)
	return wrapWrite(err)
}
