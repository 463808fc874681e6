package main

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/regd-io/regd/client"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// filterFlags choose instances.
type filterFlags struct {
	namespace, zone, health string
	tags, metadata          []string
}

// healthWords are the words for health, least fit first.
func healthWords() []string {
	return []string{"maintenance", "critical", "draining", "starting", "warning", "passing"}
}

func addFilter(cmd *cobra.Command) *filterFlags {
	f := &filterFlags{}
	fs := cmd.Flags()
	addNamespace(cmd, &f.namespace, "namespace; * for all")
	fs.StringArrayVar(&f.tags, "tag", nil, "only with this `tag`; repeatable, all must hold")
	fs.StringVar(&f.zone, "zone", "", "only in this `zone`")
	enumVar(fs, &f.health, "health", "only at least so well", healthWords()...)
	complete(cmd, "health", healthWords()...)
	fs.StringArrayVar(&f.metadata, "meta", nil, "only with this metadata, as `key=value`; repeatable, all must hold")
	return f
}

// filter makes the filter for a service; empty: all services.
func (f *filterFlags) filter(service string) (client.Filter, error) {
	metadata, err := keyValues("--meta", f.metadata)
	if err != nil {
		return client.Filter{}, err
	}
	return client.Filter{
		Namespace: f.namespace, Service: service, Tags: f.tags, Zone: f.zone, Metadata: metadata,
		MinHealth: registryv1.Health(registryv1.Health_value["HEALTH_"+strings.ToUpper(f.health)]),
	}, nil
}

// keyValues splits key=value arguments.
func keyValues(flag string, pairs []string) (map[string]string, error) {
	if len(pairs) == 0 {
		return nil, nil
	}
	m := map[string]string{}
	for _, pair := range pairs {
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return nil, usageErrorf("%s %q: must be key=value", flag, pair)
		}
		if _, twice := m[key]; twice {
			return nil, usageErrorf("%s %s: given twice", flag, key)
		}
		m[key] = value
	}
	return m, nil
}

func newInstancesCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "instances [SERVICE] [flags]",
		Short: "List the instances of a service, or of all.",
		Example: `  regd instances web

  # Those fit for traffic in one zone, for a script.
  regd instances web --health passing --zone zone-a -o json | jq -r '.instances[].address'

  # Without a leader: whatever the node that is asked knows.
  regd instances --freshness stale`,
		Args: arguments("[SERVICE]"),
	}
	filters := addFilter(cmd)
	fresh := addFreshness(cmd)
	out := a.addOutput(cmd, formatTable, formatWide, formatJSON, formatYAML, formatJSONL, formatName)
	conn := a.addConnection(cmd)
	cmd.ValidArgsFunction = conn.completeServices
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		filter, err := filters.filter(first(args))
		if err != nil {
			return err
		}
		return conn.call(cmd, func(ctx context.Context, cl *client.Client) error {
			result, err := cl.Instances(ctx, filter, fresh.option)
			if err != nil {
				return err
			}
			if len(result.Instances) == 0 {
				out.note("no such %s", instancesOf(filter)+servicesLike(ctx, cl, filter))
			}
			return printInstances(out, filter, result)
		})
	}
	return cmd
}

// first returns the first argument, if there is one.
func first(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

// instancesOf says what a filter is for.
func instancesOf(filter client.Filter) string {
	what := "instances"
	if filter.Service != "" {
		what += " of " + filter.Service
	}
	return what + inNamespace(filter.Namespace)
}

func printInstances(out *output, filter client.Filter, result client.Result) error {
	instances := []instanceView{}
	for _, i := range result.Instances {
		instances = append(instances, viewInstance(i))
	}
	doc := struct {
		Header          headerView     `json:"header"`
		ServiceRevision uint64         `json:"service_revision"`
		Instances       []instanceView `json:"instances"`
	}{viewInfo(result.ReadInfo), result.ServiceRevision, instances}
	return printList(out, doc, instances, instanceTable(time.Now(), filter.Namespace == client.AllNamespaces))
}
