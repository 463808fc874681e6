package workload

import (
	"fmt"
	"math/rand/v2"
	"sync"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// services are those that clients register in and watch.
var services = []string{"alpha", "beta", "gamma"}

const namespace = "default"

// keyring hands out the instances that the clients of the registry fight for. Each belongs to no session, and is given
// up after a number of operations: judging a history is exponential in the operations on one thing.
type keyring struct {
	mu   sync.Mutex
	most int // operations on one instance
	live []*key
	made int
}

// key is an instance that is fought for.
type key struct {
	service, id string
	ops         int
}

// liveKeys is the number of instances that are fought for at a time.
const liveKeys = 4

func newKeyring(most int) *keyring {
	k := &keyring{most: most}
	for range liveKeys {
		k.live = append(k.live, k.next())
	}
	return k
}

func (k *keyring) next() *key {
	k.made++
	return &key{service: services[k.made%len(services)], id: fmt.Sprintf("key%d", k.made)}
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
	return &apiv1.InstanceKey{Namespace: namespace, Service: chosen.service, Id: chosen.id}
}
