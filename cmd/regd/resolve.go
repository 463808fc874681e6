package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/balance"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// policies are the ways to choose, by the word for each.
func policies() map[string]func() balance.Policy {
	return map[string]func() balance.Policy{
		"round-robin":          balance.RoundRobin,
		"weighted-round-robin": balance.WeightedRoundRobin,
		"random":               balance.Random,
		"weighted-random":      balance.WeightedRandom,
		"least-requests":       balance.LeastRequests,
		"rendezvous":           balance.Rendezvous,
		"ring":                 balance.Ring,
	}
}

// policyWords are the words for policies, those for most uses first.
func policyWords() []string {
	return []string{
		"weighted-round-robin", "round-robin", "least-requests", "weighted-random", "random", "rendezvous", "ring",
	}
}

// resolveFlags say how is chosen.
type resolveFlags struct {
	policy, key, port, region, zone string
	warning, one                    bool
}

// resolvedView is what is said of one instance.
type resolvedView struct {
	instanceView
	Endpoint string  `json:"endpoint,omitempty"`
	Share    float64 `json:"share"`
	// Reason why it is not chosen.
	Reason string `json:"reason,omitempty"`
}

func newResolveCmd(a *app) *cobra.Command {
	f := &resolveFlags{policy: policyWords()[0]}
	cmd := &cobra.Command{
		Use:   "resolve SERVICE [flags]",
		Short: "Say which instance a client would choose, and why.",
		Long: `Say which instance a client would choose, and why.

For each instance of the service: the share of calls that it gets from the balancer of the Go client, or why it gets none.
What only a running client knows, such as its circuit breakers, is left out.`,
		Example: `  regd resolve web

  # As a client in one zone sees it.
  regd resolve web --from-zone zone-a

  # Where the requests of one user go.
  regd resolve web --policy rendezvous --key user-42

  # For scripts: the address of one that is fit for traffic.
  curl "http://$(regd resolve web --one)/"`,
		Args: arguments("SERVICE"),
	}
	filters := addFilter(cmd)
	fs := cmd.Flags()
	enumVar(fs, &f.policy, "policy", "how to choose", policyWords()...)
	complete(cmd, "policy", policyWords()...)
	fs.StringVar(&f.key, "key", "", "what is hashed, with rendezvous and ring, such as a `user`")
	fs.StringVar(&f.port, "port", "", "the `name` of the port; default: the first")
	fs.StringVar(&f.zone, "from-zone", "", "prefer this `zone`, in which the client is")
	fs.StringVar(&f.region, "from-region", "", "prefer this `region` to others")
	fs.BoolVar(&f.warning, "warning", false, "instances in warning are as good as passing ones")
	fs.BoolVar(&f.one, "one", false, "choose one, and print its host:port only")
	fresh := addFreshness(cmd)
	out := a.addOutput(cmd, formatTable, formatWide, formatJSON, formatYAML, formatJSONL, formatName)
	conn := a.addConnection(cmd)
	cmd.ValidArgsFunction = conn.completeServices
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		filter, err := filters.filter(args[0])
		if err != nil {
			return err
		}
		return conn.call(cmd, func(ctx context.Context, cl *client.Client) error {
			result, err := cl.Instances(ctx, filter, fresh.option)
			if err != nil {
				return err
			}
			if len(result.Instances) == 0 {
				return noInstances(ctx, cl, filter)
			}
			return f.print(out, result)
		})
	}
	return cmd
}

// chosen is the policy that the flags name.
func (f *resolveFlags) chosen() balance.Policy {
	policy := policies()[f.policy]()
	if f.zone != "" || f.region != "" {
		policy = balance.Local(f.region, f.zone, policy)
	}
	return policy
}

// balancer returns one as the flags say, of the instances.
func (f *resolveFlags) balancer(instances []*registryv1.Instance) (*balance.Balancer, error) {
	var options []balance.Option
	if f.warning {
		options = append(options, balance.WithMinHealth(registryv1.Health_HEALTH_WARNING))
	}
	b, err := balance.New(f.chosen(), options...)
	if err != nil {
		return nil, err
	}
	b.Update(instances)
	return b, nil
}

func (f *resolveFlags) print(out *output, result client.Result) error {
	b, err := f.balancer(result.Instances)
	if err != nil {
		return err
	}
	request := balance.Request{Hash: balance.Hash(f.key)}
	if f.one {
		return f.printOne(out, b, request)
	}
	why := b.Explain(request)
	list := []resolvedView{}
	for _, s := range why.Instances {
		v := resolvedView{instanceView: viewInstance(s.Instance), Share: s.Share}
		v.Endpoint, err = balance.HostPort(s.Instance, f.port)
		switch {
		case s.Reason != balance.ReasonNone:
			v.Reason = s.Reason.String()
		case err != nil:
			v.Reason = err.Error()
		}
		list = append(list, v)
	}
	doc := struct {
		Header    headerView     `json:"header"`
		Policy    string         `json:"policy"`
		Instances []resolvedView `json:"instances"`
	}{viewInfo(result.ReadInfo), why.Policy, list}
	if why.Err != nil {
		out.note("none can be chosen: %v", why.Err)
	}
	return printList(out, doc, list, resolvedTable())
}

func (f *resolveFlags) printOne(out *output, b *balance.Balancer, request balance.Request) error {
	pick, err := b.Pick(request)
	if err != nil {
		return &exitError{code: exitNotFound, err: err, hint: "without --one it is said why each was not chosen"}
	}
	defer pick.Done(balance.Neutral)
	address, err := balance.HostPort(pick.Instance(), f.port)
	if err != nil {
		return &exitError{code: exitNotFound, err: err}
	}
	_, err = fmt.Fprintln(out.answer(), address)
	return wrapWrite(err)
}

func resolvedTable() tableOf[resolvedView] {
	return tableOf[resolvedView]{
		name: func(v resolvedView) string { return v.Endpoint },
		columns: []column[resolvedView]{
			{title: "ID", text: func(v resolvedView) string { return v.ID }},
			{title: "ENDPOINT", text: func(v resolvedView) string { return v.Endpoint }},
			{title: "ZONE", text: func(v resolvedView) string { return v.Zone }},
			{title: "HEALTH", text: func(v resolvedView) string { return v.Health }, colour: func(v resolvedView) string { return healthColour(v.Health) }},
			{title: "SHARE", text: func(v resolvedView) string { return fmt.Sprintf("%.1f %%", 100*v.Share) }},
			{title: "REASON", text: func(v resolvedView) string { return v.Reason }},
			{title: "WEIGHT", wide: true, text: func(v resolvedView) string { return fmt.Sprint(v.Weight) }},
			{title: "TAGS", wide: true, text: func(v resolvedView) string { return strings.Join(v.Tags, ",") }},
			{title: "META", wide: true, text: func(v resolvedView) string { return metadataText(v.Metadata) }},
		},
	}
}

// noInstances is the error of a command that needs an instance of a service. It names services that may have been meant.
func noInstances(ctx context.Context, cl *client.Client, filter client.Filter) error {
	return &exitError{
		code: exitNotFound, err: errors.New("no " + instancesOf(filter) + servicesLike(ctx, cl, filter)),
		hint: "regd services  lists what there is; see also --namespace",
	}
}

// servicesLike ends a message with services that may have been meant; empty if there are none, or they can't be asked for.
func servicesLike(ctx context.Context, cl *client.Client, filter client.Filter) string {
	if filter.Service == "" {
		return ""
	}
	services, err := cl.Services(ctx, client.ServiceFilter{Namespace: filter.Namespace}, client.Stale())
	if err != nil {
		return ""
	}
	var names []string
	for _, s := range services.Services {
		if s.GetName() != filter.Service { // Which is there: the rest of the filter did not match.
			names = append(names, s.GetName())
		}
	}
	return didYouMean(filter.Service, names, "")
}
