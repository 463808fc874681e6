package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// regd is what is measured.
type regd struct {
	binary, logStore string

	asked atomic.Uint64 // sequences of requests
}

func (*regd) name() string { return "regd" }

func (s *regd) command(node int, all []addresses, dir string) []string {
	peers := ""
	for i, a := range all {
		if i > 0 {
			peers += ","
		}
		peers += a.peer
	}
	a := all[node]
	return []string{
		s.binary, "serve", "--name", "n" + strconv.Itoa(node), "--data-dir", filepath.Join(dir, "data"), "--grpc-listen", a.client,
		"--peer-listen", a.peer, "--http-listen", a.metrics, "--initial-peers", peers,
		"--log-store", s.logStore,
	}
}

func (*regd) leads(ctx context.Context, conn *grpc.ClientConn) bool {
	s, err := apiv1.NewClusterServiceClient(conn).Status(ctx, &apiv1.StatusRequest{Local: true})
	return err == nil && s.GetHeader().GetLeader() != "" && "passthrough:///"+s.GetHeader().GetLeader() == conn.Target()
}

// requestID appends the id of the next request of a client that makes one at a time.
func (s *regd) requestID(b []byte, client int) []byte {
	n := s.asked.Add(1)
	var space, name [64]byte
	id := appendBytes(space[:0], 1, strconv.AppendInt(append(name[:0], "bench-"...), int64(client), 10))
	return appendBytes(b, 1, appendNumber(appendNumber(id, 2, n), 3, n))
}

func (*regd) opening(ttl time.Duration) step {
	request := encoded(&apiv1.OpenRequest{ClientName: "bench", Ttl: durationpb.New(ttl)})
	return step{
		method:  apiv1.SessionService_Open_FullMethodName,
		request: func(b []byte, _ *turn) []byte { return append(b, request...) },
		answer: func(t *turn, message []byte) error {
			var reply apiv1.OpenResponse
			err := proto.Unmarshal(message, &reply)
			if t.who.id = reply.GetSession().GetId(); err == nil && t.who.id == "" {
				err = errors.New("no session was opened")
			}
			return err
		},
	}
}

func (s *regd) registering(metadata int, what func(t *turn) instance) step {
	return s.registration(metadata, what, nil)
}

func (s *regd) registeringAlone(what func(t *turn) instance) exchange {
	return exchange{s.registration(0, what, encoded(&apiv1.RegisterRequest{
		OpenSession: &apiv1.NewSession{ClientName: "bench", Ttl: durationpb.New(time.Hour)},
	}))}
}

// registration registers, with more in the request than the instance.
func (s *regd) registration(metadata int, what func(t *turn) instance, more []byte) step {
	i := described(instance{}, metadata)
	delete(i.Metadata, "commit")
	same := encoded(i)
	return step{method: apiv1.RegistryService_Register_FullMethodName, request: func(b []byte, t *turn) []byte {
		in := what(t)
		var space [512]byte
		i := appendBytes(appendBytes(append(space[:0], same...), 2, in.service), 3, in.id)
		var entry, number [64]byte
		version := strconv.AppendInt(number[:0], int64(in.version), 10)
		i = appendBytes(i, 7, append(append(append(entry[:0], commitBefore...), byte(len(version))), version...))
		if t.who.id != "" {
			i = appendBytes(i, 12, t.who.id)
		}
		return append(appendBytes(s.requestID(b, t.client), 2, i), more...)
	}}
}

// encoded is a message, encoded.
func encoded(m proto.Message) []byte {
	b, _ := proto.Marshal(m) // Nothing that is sent can't be encoded.
	return b
}

// described is an instance as regd has it, but for its owner, with so many bytes of metadata, if that is more than usual.
func described(in instance, bytes int) *registryv1.Instance {
	metadata := map[string]string{"version": "2.14.3", "commit": strconv.Itoa(in.version), "team": "payments", "lang": "go"}
	pad(metadata, bytes)
	return &registryv1.Instance{
		Service: in.service, Id: in.id, Address: "10.1.2.3", Zone: "eu-central-1a", Region: "eu-central-1",
		Ports: []*registryv1.Port{{Name: "http", Number: 8080}}, Tags: []string{"v2", "canary"}, Metadata: metadata,
	}
}

// pad fills metadata up to a size, all keys and values together, with values as long as the API takes.
func pad(metadata map[string]string, size int) {
	for key, v := range metadata {
		size -= len(key) + len(v)
	}
	const longest = 512
	for i := 0; size > 0; i++ {
		key := "p" + strconv.Itoa(i)
		n := min(longest, max(0, size-len(key)))
		metadata[key] = strings.Repeat("x", n)
		size -= len(key) + n
	}
}

func (*regd) reading(service func(t *turn) string, linearizable bool, want int) step {
	mode := apiv1.Mode_MODE_STALE
	if linearizable {
		mode = apiv1.Mode_MODE_LINEARIZABLE
	}
	freshness := encoded(&apiv1.ListInstancesRequest{Freshness: &apiv1.Freshness{Mode: mode}})
	return step{
		method: apiv1.RegistryService_ListInstances_FullMethodName,
		request: func(b []byte, t *turn) []byte {
			var filter [128]byte
			return append(appendBytes(b, 1, appendBytes(filter[:0], 2, service(t))), freshness...)
		},
		answer: having(2, want),
	}
}

// renewing renews sessions by one stream, whose answers tell how many requests they answer.
func (*regd) renewing() renewals {
	var asked, acked uint64
	return renewals{
		method: apiv1.SessionService_Attach_FullMethodName,
		request: func(b []byte, who owner) []byte {
			asked++
			return appendNumber(appendBytes(b, 1, who.id), 2, asked)
		},
		answer: func(message []byte) (int, error) {
			before := acked
			err := fields(message, func(field protowire.Number, number uint64, data []byte) error {
				switch field {
				case 1:
					acked = number
				case 2:
					return fmt.Errorf("session %q has ended", data)
				}
				return nil
			})
			if err == nil && (acked < before || acked > before+window) {
				err = fmt.Errorf("renewal %d is answered, after %d", acked, before)
			}
			return int(acked - before), err //nolint:gosec // Some of those under way.
		},
	}
}

// watching hears of nothing until all that was there before is told.
func (*regd) watching(service string) changes {
	const cut, synced, events, ended = 1, 2, 3, 5 // Fields of a WatchServiceResponse.
	stands := false
	return changes{
		method:  apiv1.RegistryService_WatchService_FullMethodName,
		request: encoded(&apiv1.WatchServiceRequest{Filter: &apiv1.Filter{Service: service}}),
		heard: func(message []byte, changed func(version int)) (bool, error) {
			err := fields(message, func(field protowire.Number, _ uint64, data []byte) error {
				switch {
				case field == synced:
					stands = true
				case field == ended, field == cut && stands:
					return errors.New("the watch fell behind")
				case field == events && stands:
					return versions(data, changed)
				}
				return nil
			})
			return stands, err
		},
	}
}

// versions calls changed with the version of each instance of an Events.
func versions(events []byte, changed func(version int)) error {
	return within(events, 1, func(subscribed []byte) error {
		return within(subscribed, 1, func(event []byte) error {
			return within(event, 3, func(instance []byte) error {
				version := -1
				err := within(instance, 7, func(entry []byte) (err error) {
					if commit, found := bytes.CutPrefix(entry, commitBefore); found {
						version, err = strconv.Atoi(string(commit[1:]))
					}
					return err
				})
				if err == nil && version < 0 {
					err = errors.New("a change without a version")
				}
				if err == nil {
					changed(version)
				}
				return err
			})
		})
	})
}

// commitBefore is what comes before the version, and the byte of its length, in an entry of metadata.
var commitBefore = protowire.AppendTag(appendBytes(nil, 1, "commit"), 2, protowire.BytesType)
