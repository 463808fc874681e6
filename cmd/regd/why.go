package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/regd-io/regd/client"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

func newWhyCmd(a *app) *cobra.Command {
	var namespace string
	var limit int
	cmd := &cobra.Command{
		Use:   "why [NAMESPACE/]SERVICE/INSTANCE [flags]",
		Short: "Tell what happened to an instance and why, also when it is gone.",
		Long: `The cluster keeps the last 90,000 or so changes of all instances: who registered it, what its checks found, who or which
verdict removed it. The answer says how far back that reaches. Who did it is shown to whoever may observe the cluster.

An id that has slashes itself is given as a second argument: regd why SERVICE INSTANCE.`,
		Example: `  regd why web/web-1
  regd why team-a/web/web-1 -o json | jq '.changes[-1]'
  regd why web rack/7/web-1`,
		Args: arguments("INSTANCE", "[ID]"),
	}
	cmd.Flags().IntVar(&limit, "limit", 20, "show the newest so many changes, up to 1,000")
	addNamespace(cmd, &namespace, "namespace of the instance, unless it is named with it")
	fresh := addFreshness(cmd)
	out := a.addOutput(cmd, formatText, formatJSON, formatYAML)
	conn := a.addConnection(cmd)
	cmd.ValidArgsFunction = conn.completeKey
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		key, err := namedInstance(namespace, args)
		if err != nil {
			return err
		}
		if limit < 1 || limit > 1000 {
			return usageErrorf("--limit %d: must be 1 to 1,000", limit)
		}
		return conn.call(cmd, func(ctx context.Context, cl *client.Client) error {
			resp, err := cl.Explain(ctx, key, limit, fresh.option)
			if err != nil {
				return err
			}
			v := viewWhy(key, resp)
			if out.isDocument() {
				return out.printDocument(v)
			}
			return v.print(a.answer(), time.Now())
		})
	}
	return cmd
}

// namedInstance reads [NAMESPACE/]SERVICE/INSTANCE, or SERVICE and INSTANCE.
func namedInstance(namespace string, args []string) (client.Key, error) {
	if len(args) == 2 {
		return client.Key{Namespace: namespace, Service: args[0], ID: args[1]}, nil
	}
	switch parts := strings.Split(args[0], "/"); len(parts) {
	case 2:
		return client.Key{Namespace: namespace, Service: parts[0], ID: parts[1]}, nil
	case 3:
		return client.Key{Namespace: parts[0], Service: parts[1], ID: parts[2]}, nil
	default:
		return client.Key{}, usageErrorf("%q: must be [NAMESPACE/]SERVICE/INSTANCE, or SERVICE INSTANCE where the id has slashes", args[0])
	}
}

// whyView is what happened to an instance.
type whyView struct {
	Namespace string `json:"namespace"`
	Service   string `json:"service"`
	ID        string `json:"id"`
	// Health is that of the instance, "gone" if it is not registered.
	Health string `json:"health"`
	// Incarnation and Registered are of its present registration.
	Incarnation uint64     `json:"incarnation,omitempty"`
	Registered  *time.Time `json:"registered_at,omitempty"`
	// Changes are oldest first.
	Changes []transitionView `json:"changes"`
	// More says that there are older ones beyond the limit.
	More bool `json:"more"`
	// Kept says that the cluster keeps a history; AfterRevision and After how far back it reaches.
	Kept          bool       `json:"kept"`
	AfterRevision uint64     `json:"after_revision"`
	After         *time.Time `json:"after,omitempty"`
	// IdentitiesWithheld says that the caller is not told who did it.
	IdentitiesWithheld bool `json:"identities_withheld,omitempty"`

	reaches bool // back to when the instance was registered
}

// transitionView is one change of an instance.
type transitionView struct {
	Revision    uint64     `json:"revision"`
	Time        *time.Time `json:"time,omitempty"`
	Cause       string     `json:"cause"`
	Health      string     `json:"health"`
	Incarnation uint64     `json:"incarnation,omitempty"`
	Replaced    uint64     `json:"replaced_incarnation,omitempty"`
	Identity    string     `json:"identity,omitempty"`
	Session     string     `json:"session_id,omitempty"`
	Lease       string     `json:"lease_id,omitempty"`
	Check       string     `json:"check,omitempty"`
	Status      string     `json:"status,omitempty"`
	Output      string     `json:"output,omitempty"`
	Node        string     `json:"node,omitempty"`
	Term        uint64     `json:"term,omitempty"`
	SilenceMs   uint64     `json:"silence_ms,omitempty"`
	Set         bool       `json:"set,omitempty"`
	// Text says it for people.
	Text string `json:"text"`
}

const gone = "gone"

func viewWhy(key client.Key, resp *apiv1.ExplainResponse) whyView {
	v := whyView{
		Namespace: key.Namespace, Service: key.Service, ID: key.ID, Health: gone, Changes: []transitionView{}, More: resp.GetMore(),
		Kept: resp.GetKept(), AfterRevision: resp.GetAfterRevision(), After: timeOf(resp.GetAfterUnixMs()),
		IdentitiesWithheld: resp.GetIdentitiesWithheld(),
	}
	if in := resp.GetInstance(); in != nil {
		v.Health = enumWord(in.GetHealth().String(), "HEALTH_")
		v.Incarnation, v.Registered = in.GetIncarnation(), timeOf(in.GetRegisteredUnixMs())
	}
	for _, tr := range resp.GetTransitions() {
		v.Changes = append(v.Changes, viewTransition(tr))
		v.reaches = v.reaches || tr.GetCause() == registryv1.Cause_CAUSE_REGISTERED && tr.GetReplaced() == 0
	}
	return v
}

func viewTransition(tr *registryv1.Transition) transitionView {
	v := transitionView{
		Revision: tr.GetRevision(), Time: timeOf(tr.GetTimeUnixMs()), Cause: enumWord(tr.GetCause().String(), "CAUSE_"),
		Health: gone, Incarnation: tr.GetIncarnation(), Replaced: tr.GetReplaced(), Identity: tr.GetActor(),
		Session: tr.GetSessionId(), Lease: tr.GetLeaseId(), Check: tr.GetCheck(), Output: tr.GetOutput(),
		Node: tr.GetJudge(), Term: tr.GetTerm(), SilenceMs: tr.GetSilenceMs(), Set: tr.GetSet(), Text: transitionText(tr),
	}
	switch {
	case tr.GetHealth() != registryv1.Health_HEALTH_UNSPECIFIED:
		v.Health = enumWord(tr.GetHealth().String(), "HEALTH_")
	case tr.GetCause() == registryv1.Cause_CAUSE_RESTORED:
		v.Health = ""
	}
	if tr.GetStatus() != registryv1.CheckStatus_CHECK_STATUS_UNSPECIFIED {
		v.Status = enumWord(tr.GetStatus().String(), "CHECK_STATUS_")
	}
	return v
}

// transitionText says for people what a change was and why it came about.
//
//nolint:gocyclo // A table of the causes.
func transitionText(tr *registryv1.Transition) string {
	silence := (time.Duration(tr.GetSilenceMs()) * time.Millisecond).Round(100 * time.Millisecond) //nolint:gosec // Log time.
	text := ""
	switch tr.GetCause() {
	case registryv1.Cause_CAUSE_REGISTERED:
		text = "registered as incarnation " + fmt.Sprint(tr.GetIncarnation())
		if tr.GetReplaced() > 0 {
			text = fmt.Sprintf("incarnation %d replaced by a registration as %d", tr.GetReplaced(), tr.GetIncarnation())
		}
		text += on("session", tr.GetSessionId()) + on("lease", tr.GetLeaseId())
	case registryv1.Cause_CAUSE_DEREGISTERED:
		text = "deregistered"
	case registryv1.Cause_CAUSE_SESSION_EXPIRED:
		text = "session " + tr.GetSessionId() + " expired" + after(silence, "of silence")
	case registryv1.Cause_CAUSE_SESSION_CLOSED:
		text = "session " + tr.GetSessionId() + " was closed"
	case registryv1.Cause_CAUSE_LEASE_EXPIRED, registryv1.Cause_CAUSE_LEASE_REVOKED:
		text = "lease " + tr.GetLeaseId()
		switch {
		case tr.GetSessionId() != "":
			text += " ended with session " + tr.GetSessionId() + after(silence, "of silence")
		case tr.GetCause() == registryv1.Cause_CAUSE_LEASE_REVOKED:
			text += " was revoked"
		default:
			text += " expired" + after(silence, "of silence")
		}
	case registryv1.Cause_CAUSE_CHECK:
		text = fmt.Sprintf("check %q turned %s", tr.GetCheck(), enumWord(tr.GetStatus().String(), "CHECK_STATUS_"))
		if tr.GetOutput() != "" {
			text += fmt.Sprintf(": %q", tr.GetOutput())
		}
	case registryv1.Cause_CAUSE_DRAIN:
		text = ended(tr.GetSet(), "draining")
	case registryv1.Cause_CAUSE_MAINTENANCE:
		text = ended(tr.GetSet(), "in maintenance")
	case registryv1.Cause_CAUSE_CRITICAL_TOO_LONG:
		text = "removed for being critical for " + silence.String()
	case registryv1.Cause_CAUSE_RESTORED:
		text = "the registry was restored from a snapshot: the instance was as it was there, or not there"
	default:
		text = enumWord(tr.GetCause().String(), "CAUSE_")
	}
	if tr.GetActor() != "" {
		text += ", by " + tr.GetActor()
	}
	if tr.GetTerm() > 0 {
		text += ", judged by the leader"
		if tr.GetJudge() != "" {
			text = strings.TrimSuffix(text, "the leader") + "node " + tr.GetJudge()
		}
		text += fmt.Sprintf(" in term %d", tr.GetTerm())
	}
	return text
}

func on(kind, id string) string {
	if id == "" {
		return ""
	}
	return " on " + kind + " " + id
}

func after(d time.Duration, what string) string {
	if d == 0 {
		return ""
	}
	return " after " + d.String() + " " + what
}

func ended(set bool, what string) string {
	if set {
		return what
	}
	return "no longer " + what
}

// print prints a timeline.
func (v whyView) print(w io.Writer, now time.Time) error {
	var b strings.Builder
	name := clean(v.Namespace + "/" + v.Service + "/" + v.ID)
	state := v.Health
	if state == gone && len(v.Changes) == 0 { // Nothing tells that it ever was there: perhaps the name is misspelt.
		state = "not registered"
	}
	fmt.Fprintf(&b, "%s is %s\n", name, state)
	if v.More {
		b.WriteString("  older changes are left out: --limit shows more\n")
	} else if why := v.missing(now); why != "" {
		b.WriteString("  " + why + "\n")
	}
	for _, c := range v.Changes {
		when := "-"
		if c.Time != nil {
			when = c.Time.Local().Format("2006-01-02 15:04:05.000")
		}
		fmt.Fprintf(&b, "  %s  revision %-8d %-12s %s\n", when, c.Revision, c.Health, clean(c.Text))
	}
	if v.IdentitiesWithheld {
		b.WriteString("  Who did it is not shown to you: that takes the permission to observe the cluster.\n")
	}
	_, err := io.WriteString(w, b.String())
	return wrapWrite(err)
}

// missing says what the history does not hold, empty if it reaches back to when the instance came to be.
func (v whyView) missing(now time.Time) string {
	switch {
	case !v.Kept:
		return "no history is kept yet: it begins with the first write once all members are of a version that knows of it"
	case v.reaches:
		return ""
	}
	since := fmt.Sprintf("revision %d", v.AfterRevision)
	if v.After != nil {
		since += fmt.Sprintf(" (%s, %s ago)", v.After.Local().Format("2006-01-02 15:04:05"), now.Sub(*v.After).Round(time.Second))
	}
	if len(v.Changes) == 0 && v.Health == gone {
		return "the history has nothing of it; it reaches back to " + since + ": check namespace, service and id"
	}
	text := "what happened before " + since + " is no longer kept"
	if len(v.Changes) == 0 && v.Registered != nil {
		text += fmt.Sprintf(
			"; it was registered as incarnation %d at %s", v.Incarnation, v.Registered.Local().Format("2006-01-02 15:04:05"))
	}
	return text
}
