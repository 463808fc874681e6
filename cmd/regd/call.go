package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/balance"
	"github.com/regd-io/regd/client/discovery"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// Limits of what one command asks of a service.
const (
	maxCalls    = 100_000
	maxCallRate = 1000
	maxRetries  = 4
	maxBody     = 16 << 20 // bytes of an answer, and of what is sent
)

// callFlags say what is called, and how.
type callFlags struct {
	filters  *filterFlags
	choice   resolveFlags
	http     httpFlags
	tls      callTLS
	grpc     bool
	health   string // the name that gRPC's health check asks about
	secure   string // scheme
	retries  int
	count    int
	rate     float64
	fail     bool
	verbose  bool
	endpoint *connection
}

// callView is what became of one call.
type callView struct {
	Service   string        `json:"service"`
	Namespace string        `json:"namespace"`
	Instance  *instanceView `json:"instance,omitempty"` // that gave the answer, or was tried last
	Policy    string        `json:"policy"`
	// Share of the calls that the instance gets, how many can be chosen, and how many there are.
	Share     float64       `json:"share"`
	Choice    int           `json:"choice"`
	Instances int           `json:"instances"`
	Attempts  []attemptView `json:"attempts"`
	Status    string        `json:"status,omitempty"` // as 200 OK, or SERVING
	Code      int           `json:"code,omitempty"`   // of HTTP
	// Headers of the answer, and its body: as text if it is that, else in base64.
	Headers    map[string][]string `json:"headers,omitempty"`
	Body       string              `json:"body,omitempty"`
	BodyBase64 []byte              `json:"body_base64,omitempty"`
	TookMs     float64             `json:"took_ms"`
	Error      string              `json:"error,omitempty"`

	good bool // an answer that --fail lets pass
	vain bool // no instance answered
	body []byte
	took time.Duration
	err  error
}

// attemptView is a try on one instance.
type attemptView struct {
	Instance string  `json:"instance,omitempty"`
	Address  string  `json:"address,omitempty"`
	Status   string  `json:"status,omitempty"`
	Error    string  `json:"error,omitempty"`
	TookMs   float64 `json:"took_ms"`
}

// caller makes calls of one protocol.
type caller interface {
	// call makes one call, and fills in Attempts, the answer and the error.
	call(ctx context.Context, v *callView)
	close()
}

func newCallCmd(a *app) *cobra.Command {
	f := &callFlags{choice: resolveFlags{policy: policyWords()[0]}, secure: "http"}
	cmd := &cobra.Command{
		Use:   "call SERVICE [PATH] [flags]",
		Short: "Call a service as a client would: one instance is chosen, another one if that fails.",
		Long: `Call a service as a client would: one instance is chosen, another one if that fails.

The answer goes to stdout; who gave it, why it was chosen and what was tried before go to stderr. The choice and the retries
are those of the Go client: again on another instance if nothing was sent, or if the request may be repeated (GET, HEAD,
OPTIONS) and the connection broke or the answer was 502, 503 or 504. Redirects are shown, not followed.

With --grpc, the method Check of grpc.health.v1.Health is called, and what it says is printed. gRPC chooses among the
instances that are connected, which at the first call may be one only: --count shows the balance. --timeout is the time of
each call.`,
		Example: `  regd call web
  regd call web /health -v

  # Whether each instance answers, and how fast.
  regd call web /health --count 200 --rate 50

  # What one version answers to a client in zone-a.
  regd call web /orders -d @order.json -H Content-Type:application/json --meta version=2 --from-zone zone-a

  # gRPC health, with TLS.
  regd call payment --grpc --grpc-service payment.v1.Payment --scheme https --service-ca-cert ca.pem

  # For scripts: fail unless the answer is good.
  regd call web /health --fail --timeout 2s -o json`,
		Args: arguments("SERVICE", "[PATH]"),
		Annotations: map[string]string{helpAnnotation: "Exit codes: 0 answered, 1 the call failed, 3 no such service or port, 6 no answer in time, " +
			"10 no instance is fit for\ntraffic, 11 a bad answer (--fail): status 400 and above, or not SERVING. " +
			"With --count, as the last call that went wrong."},
	}
	f.filters = addFilter(cmd)
	f.addFlags(cmd)
	out := a.addOutput(cmd, formatText, formatJSON, formatYAML)
	f.endpoint = a.addConnection(cmd)
	cmd.ValidArgsFunction = f.endpoint.completeServices
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := f.check(cmd, args); err != nil {
			return err
		}
		return f.run(cmd, out, args)
	}
	return cmd
}

func (f *callFlags) addFlags(cmd *cobra.Command) {
	fs := cmd.Flags()
	f.http.add(fs)
	f.tls.add(fs)
	enumVar(fs, &f.secure, "scheme", "without or with TLS, also with --grpc", "http", "https")
	complete(cmd, "scheme", "http", "https")
	fs.BoolVar(&f.grpc, "grpc", false, "check the health by gRPC instead of a request by HTTP")
	fs.StringVar(&f.health, "grpc-service", "", "what is asked about, such as `payment.v1.Payment`; default: the server as a whole")
	enumVar(fs, &f.choice.policy, "policy", "how to choose", policyWords()...)
	complete(cmd, "policy", policyWords()...)
	fs.StringVar(&f.choice.key, "key", "", "what is hashed, with rendezvous and ring, such as a `user`")
	fs.StringVar(&f.choice.port, "port", "", "the `name` of the port; default: the only one, or the one named http, https or grpc")
	fs.StringVar(&f.choice.zone, "from-zone", "", "prefer this `zone`, in which the client is")
	fs.StringVar(&f.choice.region, "from-region", "", "prefer this `region` to others")
	fs.IntVar(&f.retries, "retries", 2, "on how many further instances it may be tried, 0 to 4")
	fs.IntVar(&f.count, "count", 1, "how many calls, one after the other, 1 to 100000; above 1 a summary takes the place of the answers")
	fs.Float64Var(&f.rate, "rate", 0, "calls a `second` at most, up to 1000; default: as fast as they are answered")
	fs.BoolVar(&f.fail, "fail", false, "a bad answer is an error: status 400 and above, or not SERVING")
	fs.BoolVarP(&f.verbose, "verbose", "v", false, "show the headers of the answer too")
}

// check finds mistakes in the command before anything is asked.
func (f *callFlags) check(cmd *cobra.Command, args []string) error {
	switch {
	case f.filters.namespace == client.AllNamespaces:
		return usageErrorf("--namespace %s: a call is to one service: name its namespace", client.AllNamespaces)
	case f.retries < 0 || f.retries > maxRetries:
		return usageErrorf("--retries %d: must be 0 to %d", f.retries, maxRetries)
	case f.count < 1 || f.count > maxCalls:
		return usageErrorf("--count %d: must be 1 to %d", f.count, maxCalls)
	case !(f.rate >= 0 && f.rate <= maxCallRate):
		return usageErrorf("--rate %v: must be more than 0, and at most %d", f.rate, maxCallRate)
	}
	return f.checkProtocol(cmd, args)
}

// checkProtocol finds flags that mean nothing for the protocol.
func (f *callFlags) checkProtocol(cmd *cobra.Command, args []string) error {
	switch {
	case f.health != "" && !f.grpc:
		return usageErrorf("--grpc-service %s: needs --grpc", f.health)
	case f.grpc && len(args) > 1:
		return usageErrorf("%s: --grpc has no path; --grpc-service names what is asked about", args[1])
	}
	if f.grpc {
		for _, name := range httpFlagNames() {
			if cmd.Flags().Changed(name) {
				return usageErrorf("--%s and --grpc exclude each other", name)
			}
		}
	}
	if f.secure == "http" {
		for _, name := range tlsFlagNames() {
			if cmd.Flags().Changed(name) {
				return usageErrorf("--%s: needs --scheme https", name)
			}
		}
	}
	return nil
}

// target is a service as it stands before it is called.
type callTarget struct {
	service, namespace string
	instances          []*registryv1.Instance
	filter             client.Filter
	request            balance.Request
	why                balance.Explanation
}

func (f *callFlags) run(cmd *cobra.Command, out *output, args []string) error {
	newCaller := f.newHTTPCaller
	if f.grpc {
		newCaller = f.newGRPCCaller
	}
	filter, err := f.filters.filter(args[0])
	if err != nil {
		return err
	}
	prepared, err := f.http.prepare(out.app, f.secure, args)
	if err != nil {
		return err
	}
	cl, err := f.endpoint.dial(client.WithNamespace(f.filters.namespace))
	if err != nil {
		return err
	}
	defer cl.Close() //nolint:errcheck // It has no session that could be left behind.
	to, err := f.look(cmd, cl, filter)
	if err != nil {
		return err
	}
	d, err := discovery.New(cl)
	if err != nil {
		return err
	}
	defer d.Close()
	c, err := newCaller(d, to, prepared)
	if err != nil {
		return err
	}
	defer c.close()
	if f.count > 1 {
		return f.many(cmd.Context(), out, to, c)
	}
	v := f.one(cmd.Context(), to, c)
	if out.isDocument() {
		err = out.printDocument(v)
	} else {
		err = f.print(out, v)
	}
	return cmp.Or(err, f.judge(v))
}

// look asks the registry who there is, and who would be chosen: what is wrong there is better told before the call than by it.
func (f *callFlags) look(cmd *cobra.Command, cl *client.Client, filter client.Filter) (*callTarget, error) {
	ctx, cancel := f.endpoint.bounded(cmd)
	defer cancel()
	found, err := cl.Instances(ctx, client.Filter{Namespace: filter.Namespace, Service: filter.Service})
	if err != nil {
		return nil, err
	}
	if len(found.Instances) == 0 {
		return nil, noInstances(ctx, cl, filter)
	}
	to := &callTarget{
		service: filter.Service, namespace: filter.Namespace, instances: found.Instances, filter: filter,
		request: balance.Request{Filter: balance.FilterFunc("the flags", matches(filter))},
	}
	if f.choice.key != "" {
		to.request.Hash = balance.Hash(f.choice.key)
	}
	b, err := f.choice.balancer(found.Instances)
	if err != nil {
		return nil, err
	}
	if to.why = b.Explain(to.request); to.why.Err != nil {
		return nil, to.unavailable(to.why.Err)
	}
	return to, nil
}

// matches tells whether an instance is one that the flags ask for.
func matches(f client.Filter) func(*registryv1.Instance) bool {
	return func(i *registryv1.Instance) bool {
		for _, tag := range f.Tags {
			if !slices.Contains(i.GetTags(), tag) {
				return false
			}
		}
		for key, value := range f.Metadata {
			if have, ok := i.GetMetadata()[key]; !ok || have != value {
				return false
			}
		}
		return (f.Zone == "" || i.GetZone() == f.Zone) && i.GetHealth() >= f.MinHealth
	}
}

// unavailable is the error of a service without an instance to call.
func (to *callTarget) unavailable(err error) error {
	name := to.service + " in namespace " + to.namespace
	if errors.Is(err, balance.ErrNoMatch) {
		return &exitError{
			code: exitNoneFit, err: fmt.Errorf("call %s: none of %d instances has what --tag, --zone, --meta and --health ask for",
				name, len(to.instances)),
			hint: fmt.Sprintf("regd instances %s -o wide  shows what they have", to.service),
		}
	}
	return &exitError{
		code: exitNoneFit, err: fmt.Errorf("call %s: %w", name, err),
		hint: fmt.Sprintf("regd resolve %s  says of each instance why it is not chosen", to.service),
	}
}

// one makes a call.
func (f *callFlags) one(ctx context.Context, to *callTarget, c caller) *callView {
	ctx, cancel := context.WithTimeout(ctx, f.endpoint.limit)
	defer cancel()
	v := &callView{
		Service: to.service, Namespace: to.namespace, Policy: to.why.Policy, Choice: len(to.fit()), Instances: len(to.instances), Attempts: []attemptView{},
	}
	begun := time.Now()
	c.call(ctx, v)
	v.took = time.Since(begun)
	v.TookMs = milliseconds(v.took)
	for i := range v.Attempts {
		if instance := to.at(v.Attempts[i].Address); instance != nil {
			v.Attempts[i].Instance = instance.GetId()
			view := viewInstance(instance)
			v.Instance, v.Share = &view, to.share(instance.GetId())
		}
	}
	if v.err != nil {
		v.Error = v.err.Error()
	}
	return v
}

// fit are the instances that can be chosen.
func (to *callTarget) fit() []balance.Status {
	return slices.DeleteFunc(slices.Clone(to.why.Instances), func(s balance.Status) bool { return s.Reason != balance.ReasonNone })
}

// share is the part of the calls that an instance gets, from 0 to 1.
func (to *callTarget) share(id string) float64 {
	for _, s := range to.why.Instances {
		if s.Instance.GetId() == id {
			return s.Share
		}
	}
	return 0
}

// at returns the instance with an address, nil if there is none, as when it came after the service was looked up.
func (to *callTarget) at(address string) *registryv1.Instance {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil
	}
	for _, i := range to.instances {
		for _, p := range i.GetPorts() {
			if i.GetAddress() == host && strconv.FormatUint(uint64(p.GetNumber()), 10) == port {
				return i
			}
		}
	}
	return nil
}

// print prints one call: the answer to stdout, the rest to stderr.
func (f *callFlags) print(out *output, v *callView) error {
	p := out.paintFor(out.stderr)
	for n, at := range v.Attempts {
		colour, said := colourGood, at.Status
		if at.Error != "" || !v.good {
			colour, said = colourBad, cmp.Or(at.Error, at.Status)
		}
		out.note("attempt %d: %s: %s after %s", n+1, clean(at.name()), p.as(colour, clean(said)), inMs(at.TookMs))
	}
	if i := v.Instance; i != nil {
		zone := ""
		if i.Zone != "" {
			zone = " in " + i.Zone
		}
		out.note("%s gets %.1f %% of the calls by %s; %d of %d instances can be chosen", clean(i.ID+zone), 100*v.Share, clean(v.Policy),
			v.Choice, v.Instances)
	}
	if f.verbose {
		f.http.printHeaders(out, v)
	}
	body := v.body
	if isTerminal(out.stdout) {
		lines := strings.SplitAfter(string(body), "\n")
		for i, l := range lines {
			text, end := strings.CutSuffix(l, "\n")
			lines[i] = clean(text)
			if end {
				lines[i] += "\n"
			}
		}
		body = []byte(strings.Join(lines, ""))
	}
	_, err := out.answer().Write(body)
	return wrapWrite(err)
}

// name says where a try went.
func (at *attemptView) name() string {
	switch {
	case at.Instance == "":
		return cmp.Or(at.Address, "no instance")
	case at.Address == "":
		return at.Instance
	default:
		return at.Instance + " (" + at.Address + ")"
	}
}

func inMs(ms float64) string { return strconv.FormatFloat(ms, 'f', 1, 64) + "ms" }

// judge is the error that a call ends the command with.
func (f *callFlags) judge(v *callView) error {
	name := v.Service + " in namespace " + v.Namespace
	resolve := fmt.Sprintf("regd resolve %s  says who would be chosen and why; regd instances %s  what their checks say", v.Service, v.Service)
	switch {
	case v.err == nil && (v.good || !f.fail):
		return nil
	case v.err == nil:
		return &exitError{code: exitBadAnswer, err: fmt.Errorf("call %s: %s answered %s", name, v.last().name(), v.Status), hint: resolve}
	case errors.Is(v.err, context.Canceled):
		return v.err
	case errors.Is(v.err, balance.ErrNoPort):
		return &exitError{code: exitNotFound, err: v.err, hint: "--port NAME  says which of an instance's ports is called"}
	case errors.Is(v.err, balance.ErrNoneHealthy), errors.Is(v.err, balance.ErrNoInstances), errors.Is(v.err, balance.ErrNoMatch):
		return &exitError{code: exitNoneFit, err: v.err, hint: resolve}
	case errors.Is(v.err, context.DeadlineExceeded):
		return &exitError{
			code: exitTimeout, err: fmt.Errorf("call %s: no answer within %v: tried %s", name, f.endpoint.limit, v.tried()),
			hint: "give more --timeout, or look at that instance's log",
		}
	default:
		failed := fmt.Errorf("call %s: %w", name, v.err)
		if last := v.last(); v.vain && last.Error != "" {
			failed = fmt.Errorf("call %s: attempt %d of %d: %s: %s", name, len(v.Attempts), 1+f.retries, last.name(), last.Error)
		}
		return &exitError{code: exitFailed, err: failed, hint: cmp.Or(f.guess(v.err), resolve)}
	}
}

// last is the last try.
func (v *callView) last() *attemptView {
	if len(v.Attempts) == 0 {
		return &attemptView{}
	}
	return &v.Attempts[len(v.Attempts)-1]
}

// tried names the instances that were tried.
func (v *callView) tried() string {
	var names []string
	for _, at := range v.Attempts {
		names = append(names, at.name())
	}
	return cmp.Or(strings.Join(names, ", "), "no instance yet")
}
