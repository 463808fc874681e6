package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/regd-io/regd/client"
)

func newServicesCmd(a *app) *cobra.Command {
	var filter client.ServiceFilter
	cmd := &cobra.Command{
		Use:   "services [PREFIX] [flags]",
		Short: "List the services and how well they are.",
		Example: `  regd services

  # Of all namespaces, those whose name begins with "pay".
  regd services pay -n '*'`,
		Args: arguments("[PREFIX]"),
	}
	fresh := addFreshness(cmd)
	out := a.addOutput(cmd, formatTable, formatWide, formatJSON, formatYAML, formatJSONL, formatName)
	conn := a.addConnection(cmd)
	addNamespace(cmd, &filter.Namespace, "namespace; * for all")
	cmd.ValidArgsFunction = conn.completeServices
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			filter.Prefix = args[0]
		}
		return conn.call(cmd, func(ctx context.Context, cl *client.Client) error {
			result, err := cl.Services(ctx, filter, fresh.option)
			if err != nil {
				return err
			}
			services := []serviceView{}
			for _, s := range result.Services {
				services = append(services, viewService(s))
			}
			doc := struct {
				Header   headerView    `json:"header"`
				Services []serviceView `json:"services"`
			}{viewInfo(result.ReadInfo), services}
			if len(services) == 0 && out.format == formatTable {
				a.note("no services%s", inNamespace(filter.Namespace))
			}
			return printList(out, doc, services, serviceTable(filter.Namespace == client.AllNamespaces))
		})
	}
	return cmd
}

// inNamespace says where was looked, when that is not where one usually looks.
func inNamespace(namespace string) string {
	if namespace == client.AllNamespaces {
		return ""
	}
	return " in namespace " + namespace
}
