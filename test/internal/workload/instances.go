package workload

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// What instances are made of, and watched by.
var (
	services   = []string{"alpha", "beta", "gamma"}
	namespaces = []string{"default", "other"}
	tags       = []string{"a", "b", "c"}
	zones      = []string{"z1", "z2"}
)

// pick chooses one.
func pick[T any](rng *rand.Rand, of []T) T { return of[rng.IntN(len(of))] }

// fill makes an instance of the key that says something new.
func (c *caller) fill(key *apiv1.InstanceKey) *registryv1.Instance {
	instance := &registryv1.Instance{
		Namespace: key.GetNamespace(), Service: key.GetService(), Id: key.GetId(), Address: "10.0.0.1",
		Zone: pick(c.rng, zones), Metadata: map[string]string{"v": c.value()},
	}
	for _, tag := range tags {
		if c.rng.IntN(2) == 0 {
			instance.Tags = append(instance.Tags, tag)
		}
	}
	if c.rng.IntN(8) == 0 { // Large ones fill the buffers of slow readers.
		instance.Metadata["pad"] = strings.Repeat("x", 500)
	}
	return instance
}

// reported adds a check that the owner has to report.
func reported(instance *registryv1.Instance, ttl time.Duration) {
	instance.Checks = []*registryv1.Check{{
		Name: "alive", Kind: &registryv1.Check_Ttl{Ttl: &registryv1.TTLCheck{Ttl: durationpb.New(ttl)}},
		Initial: registryv1.CheckStatus_CHECK_STATUS_PASSING,
	}}
}

// filter chooses what to list or watch.
func filter(rng *rand.Rand) *apiv1.Filter {
	f := &apiv1.Filter{Service: pick(rng, services)}
	switch rng.IntN(6) {
	case 0:
		f.Tags = []string{pick(rng, tags)}
	case 1:
		f.MinHealth = registryv1.Health_HEALTH_PASSING
	case 2:
		f.Service = ""
	case 3:
		f.Service, f.Namespace = "", "*"
	case 4:
		f.Zone = pick(rng, zones)
	default:
	}
	return f
}

// keyring hands out the instances that clients of the registry fight for. Each belongs to no session, and is given up
// after a number of operations: judging a history is exponential in the operations on one thing.
type keyring struct {
	name string

	mu   sync.Mutex // guards the fields below
	most int        // operations on one instance
	live []*key
	made int
}

// key is an instance that is fought for.
type key struct {
	service, id string
	ops         int
}

// liveKeys is the number of instances of a keyring that are fought for at a time.
const liveKeys = 2

func newKeyring(name string, most int) *keyring {
	k := &keyring{name: name, most: most}
	for range liveKeys {
		k.live = append(k.live, k.next())
	}
	return k
}

func (k *keyring) next() *key {
	k.made++
	return &key{service: services[k.made%len(services)], id: fmt.Sprintf("%s-%d", k.name, k.made)}
}

// pick chooses an instance for one operation.
func (k *keyring) pick(rng *rand.Rand) *apiv1.InstanceKey {
	k.mu.Lock()
	defer k.mu.Unlock()
	i := rng.IntN(len(k.live))
	chosen := k.live[i]
	if chosen.ops++; chosen.ops >= k.most {
		k.live[i] = k.next()
	}
	return &apiv1.InstanceKey{Namespace: namespaces[0], Service: chosen.service, Id: chosen.id}
}
