package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/regd-io/regd/client"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

func newAccessCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "access [flags]",
		Short: "Decide who may do what: identities, policies, tokens.",
		Long: `An identity has policies, by its grant. Tokens and client certificates stand for identities; who shows nothing is
"anonymous". What no policy allows is denied, once access control is on.

Built-in policies: operator (everything), service (discover and register any service, use any lock, change
any key), reader (discover any service, see any lock, read no keys), observer (see how the cluster is).`,
		Example: `  # Once for a cluster. From then on each command shows this token.
  regd access bootstrap --out operator.token
  export REGD_TOKEN_FILE=operator.token

  # Who registers payment, and nothing else.
  regd access policies put payment --rule 'register:default/payment' --rule 'discover:*/*'
  regd access grants put payment payment
  regd access tokens create payment --out payment.token

  # Reading is for everybody.
  regd access grants put anonymous reader`,
		Args: cobra.ArbitraryArgs,
		RunE: onlySubcommands,
	}
	cmd.AddCommand(newBootstrapCmd(a), newWhoAmICmd(a), newPoliciesCmd(a), newGrantsCmd(a), newTokensCmd(a),
		newEnforcementCmd(a, "enable", "Deny from now on what no policy allows.", true),
		newEnforcementCmd(a, "disable", "Allow everything to everybody.", false))
	return cmd
}

func newBootstrapCmd(a *app) *cobra.Command {
	var out string
	var resets uint64
	cmd := &cobra.Command{
		Use:   "bootstrap [flags]",
		Short: "Make the first token, which may do everything, and switch access control on.",
		Long: `It works once. If no token is left that may administer access: write how often it was done before (the error says it) into
the file access-reset in the data folder of a node, and ask that node with --endpoint and --resets.`,
		Example: `  regd access bootstrap --out operator.token
  REGD_TOKEN_FILE=operator.token regd status`,
		Args: arguments(),
	}
	cmd.Flags().Uint64Var(&resets, "resets", 0, "how often it was done before")
	addTokenOut(cmd, &out)
	conn := a.addConnection(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return conn.call(cmd, func(ctx context.Context, cl *client.Client) error {
			return a.giveToken(out, func() (string, error) { return cl.Access().Bootstrap(ctx, resets) })
		})
	}
	return cmd
}

func addTokenOut(cmd *cobra.Command, out *string) {
	cmd.Flags().StringVar(out, "out", "", "write the token to a new `file` that only you can read, not to stdout")
}

// giveToken hands a token out: it can't be asked for again, so there must be a place for it before there is a token.
func (a *app) giveToken(path string, create func() (string, error)) (err error) {
	w := a.answer()
	if path != "" {
		file, openErr := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) //nolint:gosec // The user's own file.
		if openErr != nil {
			return &exitError{code: exitUsage, err: fmt.Errorf("--out: %w", openErr), hint: "name a file that does not exist yet"}
		}
		defer func() {
			if closeErr := file.Close(); err == nil {
				err = wrapWrite(closeErr)
			}
			if err != nil {
				os.Remove(path) //nolint:errcheck,gosec // It is empty.
			}
		}()
		w = file
	}
	token, err := create()
	if err != nil {
		return err
	}
	if _, err = fmt.Fprintln(w, token); err != nil {
		return wrapWrite(err)
	}
	if path == "" {
		fmt.Fprintln(a.stderr, "It is shown this once. Give it to commands by $REGD_TOKEN_FILE or $REGD_TOKEN.")
	}
	return nil
}

func newEnforcementCmd(a *app, verb, short string, enforced bool) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{Use: verb + " [flags]", Short: short, Example: "  regd access " + verb, Args: arguments()}
	if !enforced {
		cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	}
	out := a.addOutput(cmd, formatText, formatJSON, formatYAML, formatName)
	conn := a.addConnection(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if !enforced && !yes {
			if err := a.confirm(yes, "disable", "Everybody who reaches a node may then read and change everything."); err != nil {
				return err
			}
		}
		return conn.call(cmd, func(ctx context.Context, cl *client.Client) error {
			changed, err := cl.Access().SetEnforcement(ctx, enforced)
			if err != nil {
				return err
			}
			return out.done(change{Name: "access", Result: verb + "d", Changed: changed})
		})
	}
	return cmd
}

// whoView is an identity and what it may do.
type whoView struct {
	Identity   string       `json:"identity"`
	Credential string       `json:"credential"`
	Enforced   bool         `json:"enforced"`
	Expires    *time.Time   `json:"expires_at,omitempty"`
	Policies   []policyView `json:"policies"`
}

func newWhoAmICmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "whoami [flags]", Short: "Show which identity you have, and what it may do.", Example: "  regd access whoami", Args: arguments(),
	}
	out := a.addOutput(cmd, formatText, formatJSON, formatYAML)
	conn := a.addConnection(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return conn.call(cmd, func(ctx context.Context, cl *client.Client) error {
			resp, err := cl.Access().WhoAmI(ctx)
			if err != nil {
				return err
			}
			v := whoView{
				Identity: resp.GetIdentity(), Credential: resp.GetCredential(), Enforced: resp.GetEnforced(),
				Expires: timeOf(resp.GetExpiresUnixMs()), Policies: viewPolicies(resp.GetPolicies()),
			}
			if out.isDocument() {
				return out.printDocument(v)
			}
			return v.print(a.answer(), time.Now())
		})
	}
	return cmd
}

func (v whoView) print(w io.Writer, now time.Time) error {
	text := fmt.Sprintf("%s  (%s)\n", clean(v.Identity), clean(v.Credential))
	if v.Expires != nil {
		text += "  the token ends in " + v.Expires.Sub(now).Round(time.Second).String() + "\n"
	}
	switch {
	case !v.Enforced:
		text += "  access control is off: everybody may do everything\n"
	case len(v.Policies) == 0:
		text += "  may do nothing: no policy is granted\n"
	}
	for _, p := range v.Policies {
		for _, rule := range p.Rules {
			text += fmt.Sprintf("  may %-40s by policy %s\n", clean(rule), clean(p.Name))
		}
	}
	_, err := io.WriteString(w, text)
	return wrapWrite(err)
}

// timeOf is a time of the API, nil for none.
func timeOf(unixMs int64) *time.Time {
	if unixMs == 0 {
		return nil
	}
	t := time.UnixMilli(unixMs).UTC()
	return &t
}

// policyView is a policy with its rules as --rule takes them.
type policyView struct {
	Name        string   `json:"name"`
	Description string   `json:"description,omitempty"`
	Rules       []string `json:"rules"`
	Revision    uint64   `json:"revision,omitempty"`
}

func viewPolicies(policies []*registryv1.Policy) []policyView {
	views := []policyView{}
	for _, p := range policies {
		v := policyView{Name: p.GetName(), Description: p.GetDescription(), Rules: []string{}, Revision: p.GetModifyRevision()}
		for _, r := range p.GetRules() {
			v.Rules = append(v.Rules, ruleText(r))
		}
		views = append(views, v)
	}
	return views
}

// ruleText is a rule as parseRule takes it.
func ruleText(r *registryv1.Rule) string {
	names := make([]string, 0, len(r.GetActions()))
	for _, action := range r.GetActions() {
		names = append(names, actionWord(action))
	}
	text := strings.Join(names, ",")
	if r.GetNamespace() != "" {
		text += ":" + r.GetNamespace() + "/" + r.GetName()
	}
	return text
}

func actionWord(a registryv1.Action) string {
	return strings.ReplaceAll(enumWord(a.String(), "ACTION_"), "_", "-")
}

// actionWords are all actions by their words, in order.
func actionWords() []string {
	words := make([]string, 0, len(registryv1.Action_name)-1)
	for i := 1; i < len(registryv1.Action_name); i++ {
		words = append(words, actionWord(registryv1.Action(i))) //nolint:gosec // There are few.
	}
	return words
}

// parseRule reads "ACTION[,ACTION...][:NAMESPACE/NAME]".
func parseRule(text string) (*registryv1.Rule, error) {
	actions, place, placed := strings.Cut(text, ":")
	rule := &registryv1.Rule{}
	for word := range strings.SplitSeq(actions, ",") {
		i := slices.Index(actionWords(), word)
		if i < 0 {
			return nil, usageErrorf("--rule %q: unknown action %q%s; there are %s",
				text, word, didYouMean(word, actionWords(), ""), strings.Join(actionWords(), ", "))
		}
		rule.Actions = append(rule.Actions, registryv1.Action(i+1)) //nolint:gosec // There are few.
	}
	if placed {
		namespace, name, ok := strings.Cut(place, "/")
		if !ok {
			return nil, usageErrorf("--rule %q: %q must be NAMESPACE/NAME, each may end with *", text, place)
		}
		rule.Namespace, rule.Name = namespace, name
	}
	return rule, nil
}

func newPoliciesCmd(a *app) *cobra.Command {
	cmd := a.listingCmd("policies", "List the policies; put and delete them.", "  regd access policies -o yaml",
		func(ctx context.Context, cl *client.Client, out *output) error {
			policies, err := cl.Access().Policies(ctx)
			if err != nil {
				return err
			}
			views := viewPolicies(policies)
			doc := struct {
				Policies []policyView `json:"policies"`
			}{views}
			return printList(out, doc, views, tableOf[policyView]{
				name: func(v policyView) string { return "policy/" + v.Name },
				columns: []column[policyView]{
					{title: "NAME", text: func(v policyView) string { return v.Name }},
					{title: "RULES", text: func(v policyView) string { return strings.Join(v.Rules, "; ") }},
					{title: "DESCRIPTION", wide: true, text: func(v policyView) string { return v.Description }},
				},
			})
		})
	cmd.AddCommand(newPutPolicyCmd(a), a.deletingCmd("delete NAME", "policy", "Delete a policy: whoever has it has it no more.",
		func(ctx context.Context, cl *client.Access, name string) (bool, error) {
			return cl.DeletePolicy(ctx, name)
		}))
	return cmd
}

func newPutPolicyCmd(a *app) *cobra.Command {
	var rules []string
	var description string
	cmd := &cobra.Command{
		Use:   "put NAME --rule RULE... [flags]",
		Short: "Create or replace a policy.",
		Long: `A rule is ACTION[,ACTION...]:NAMESPACE/NAME, where namespace and name may end with *. Actions on services: discover, register.
On locks: see-lock, lock. On the cluster, without a name: observe, operate, administer.`,
		Example: `  regd access policies put payment --rule 'register:default/payment' --rule 'discover:*/*'
  regd access policies put team-a --rule 'register,lock:team-a/*'
  regd access policies put on-call --rule observe,operate`,
		Args: arguments("NAME"),
	}
	cmd.Flags().StringArrayVar(&rules, "rule", nil, "`rule`, repeatable")
	cmd.Flags().StringVar(&description, "description", "", "for people")
	out := a.addOutput(cmd, formatText, formatJSON, formatYAML, formatName)
	conn := a.addConnection(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		policy := &registryv1.Policy{Name: args[0], Description: description}
		if len(rules) == 0 {
			return usageErrorf("a policy needs a --rule, such as --rule 'discover:default/*'")
		}
		for _, text := range rules {
			rule, err := parseRule(text)
			if err != nil {
				return err
			}
			policy.Rules = append(policy.Rules, rule)
		}
		return conn.call(cmd, func(ctx context.Context, cl *client.Client) error {
			changed, err := cl.Access().PutPolicy(ctx, policy)
			if err != nil {
				return err
			}
			return out.done(change{Name: "policy/" + args[0], Result: "put", Changed: changed})
		})
	}
	return cmd
}

// grantView is a grant.
type grantView struct {
	Identity string   `json:"identity"`
	Policies []string `json:"policies"`
	Revision uint64   `json:"revision"`
}

func newGrantsCmd(a *app) *cobra.Command {
	cmd := a.listingCmd("grants", "List which identities have which policies; put and delete grants.", "  regd access grants",
		func(ctx context.Context, cl *client.Client, out *output) error {
			grants, err := cl.Access().Grants(ctx)
			if err != nil {
				return err
			}
			views := []grantView{}
			for _, g := range grants {
				views = append(views, grantView{g.GetIdentity(), g.GetPolicies(), g.GetModifyRevision()})
			}
			doc := struct {
				Grants []grantView `json:"grants"`
			}{views}
			return printList(out, doc, views, tableOf[grantView]{
				name: func(v grantView) string { return "grant/" + v.Identity },
				columns: []column[grantView]{
					{title: "IDENTITY", text: func(v grantView) string { return v.Identity }},
					{title: "POLICIES", text: func(v grantView) string { return strings.Join(v.Policies, ", ") }},
				},
			})
		})
	put := &cobra.Command{
		Use:     "put IDENTITY POLICY... [flags]",
		Short:   "Give an identity these policies, in place of those it had.",
		Example: "  regd access grants put payment service\n  regd access grants put anonymous reader",
		Args: func(cmd *cobra.Command, args []string) error {
			return arguments("IDENTITY", "POLICY")(cmd, args[:min(2, len(args))]) // And more policies.
		},
	}
	out := a.addOutput(put, formatText, formatJSON, formatYAML, formatName)
	conn := a.addConnection(put)
	put.RunE = func(cmd *cobra.Command, args []string) error {
		return conn.call(cmd, func(ctx context.Context, cl *client.Client) error {
			changed, err := cl.Access().PutGrant(ctx, args[0], args[1:]...)
			if err != nil {
				return err
			}
			return out.done(change{Name: "grant/" + args[0], Result: "put", Changed: changed})
		})
	}
	cmd.AddCommand(put, a.deletingCmd("delete IDENTITY", "grant", "Take all policies from an identity.",
		func(ctx context.Context, cl *client.Access, identity string) (bool, error) {
			return cl.DeleteGrant(ctx, identity)
		}))
	return cmd
}

// tokenView is a token without its secret.
type tokenView struct {
	ID          string     `json:"id"`
	Identity    string     `json:"identity"`
	Description string     `json:"description,omitempty"`
	Expires     *time.Time `json:"expires_at,omitempty"`
	Created     *time.Time `json:"created_at,omitempty"`
	CreatedBy   string     `json:"created_by,omitempty"`
}

func newTokensCmd(a *app) *cobra.Command {
	cmd := a.listingCmd("tokens", "List the tokens, without their secrets; create and delete them.", "  regd access tokens -o wide",
		func(ctx context.Context, cl *client.Client, out *output) error {
			tokens, err := cl.Access().Tokens(ctx)
			if err != nil {
				return err
			}
			views := []tokenView{}
			for _, t := range tokens {
				views = append(views, tokenView{
					t.GetId(), t.GetIdentity(), t.GetDescription(), timeOf(t.GetExpiresUnixMs()), timeOf(t.GetCreatedUnixMs()), t.GetCreatedBy(),
				})
			}
			doc := struct {
				Tokens []tokenView `json:"tokens"`
			}{views}
			return printList(out, doc, views, tokenTable())
		})
	cmd.AddCommand(newCreateTokenCmd(a), a.deletingCmd("delete ID", "token", "Delete a token: it is worth nothing at once, on all nodes.",
		func(ctx context.Context, cl *client.Access, id string) (bool, error) { return cl.DeleteToken(ctx, id) }))
	return cmd
}

func tokenTable() tableOf[tokenView] {
	when := func(t *time.Time, none string) string {
		if t == nil {
			return none
		}
		return t.Format(time.RFC3339)
	}
	return tableOf[tokenView]{
		name: func(v tokenView) string { return "token/" + v.ID },
		columns: []column[tokenView]{
			{title: "ID", text: func(v tokenView) string { return v.ID }},
			{title: "IDENTITY", text: func(v tokenView) string { return v.Identity }},
			{title: "EXPIRES", text: func(v tokenView) string { return when(v.Expires, "never") }},
			{title: "DESCRIPTION", text: func(v tokenView) string { return v.Description }},
			{title: "CREATED", wide: true, text: func(v tokenView) string { return when(v.Created, "") }},
			{title: "BY", wide: true, text: func(v tokenView) string { return v.CreatedBy }},
		},
	}
}

func newCreateTokenCmd(a *app) *cobra.Command {
	var out, description string
	var lasts time.Duration
	cmd := &cobra.Command{
		Use:   "create IDENTITY [flags]",
		Short: "Make a token that stands for an identity.",
		Long: `An identity may have several tokens: to replace one, create the next, hand it out, and delete the old one. Sessions stay, as they
belong to the identity.`,
		Example: `  regd access tokens create payment --out payment.token
  regd access tokens create ci --expires 1h`,
		Args: arguments("IDENTITY"),
	}
	addTokenOut(cmd, &out)
	cmd.Flags().StringVar(&description, "description", "", "for people")
	cmd.Flags().DurationVar(&lasts, "expires", 0, "how long it lasts; default: for ever")
	conn := a.addConnection(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		spec := client.TokenSpec{Identity: args[0], Description: description}
		if lasts < 0 {
			return usageErrorf("--expires %v: must be more than 0", lasts)
		}
		if lasts > 0 {
			spec.Expires = time.Now().Add(lasts)
		}
		return conn.call(cmd, func(ctx context.Context, cl *client.Client) error {
			return a.giveToken(out, func() (string, error) {
				token, _, err := cl.Access().CreateToken(ctx, spec)
				return token, err
			})
		})
	}
	return cmd
}

// listingCmd makes a command that lists, by itself and as its subcommand list.
func (a *app) listingCmd(
	name, short, example string, list func(context.Context, *client.Client, *output) error,
) *cobra.Command {
	cmd := &cobra.Command{Use: name + " [flags]", Short: short, Example: example}
	sub := &cobra.Command{Use: "list [flags]", Short: "List them.", Example: "  regd access " + name + " list"}
	for _, c := range []*cobra.Command{cmd, sub} {
		out := a.addOutput(c, formatTable, formatWide, formatJSON, formatYAML, formatJSONL, formatName)
		conn := a.addConnection(c)
		c.Args = arguments()
		c.RunE = func(cmd *cobra.Command, _ []string) error {
			return conn.call(cmd, func(ctx context.Context, cl *client.Client) error { return list(ctx, cl, out) })
		}
	}
	cmd.AddCommand(sub)
	return cmd
}

// deletingCmd makes a command that deletes what its argument names.
func (a *app) deletingCmd(
	use, kind, short string, remove func(ctx context.Context, cl *client.Access, name string) (changed bool, err error),
) *cobra.Command {
	_, argument, _ := strings.Cut(use, " ")
	cmd := &cobra.Command{Use: use + " [flags]", Short: short, Example: "  regd access " + kinds(kind) + " delete example", Args: arguments(argument)}
	out := a.addOutput(cmd, formatText, formatJSON, formatYAML, formatName)
	conn := a.addConnection(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return conn.call(cmd, func(ctx context.Context, cl *client.Client) error {
			changed, err := remove(ctx, cl.Access(), args[0])
			if err != nil {
				return err
			}
			return out.done(change{Name: kind + "/" + args[0], Result: "deleted", Changed: changed})
		})
	}
	return cmd
}

func kinds(kind string) string {
	if stem, ok := strings.CutSuffix(kind, "y"); ok {
		return stem + "ies"
	}
	return kind + "s"
}
