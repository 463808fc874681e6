package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
)

// etcd is what regd is held against. An instance is a key below its service's, with a value of JSON, as is usual.
type etcd struct{ binary string }

func (*etcd) name() string { return "etcd" }

func (s *etcd) command(node int, all []addresses, dir string) []string {
	name := func(i int) string { return "n" + strconv.Itoa(i) }
	initial := ""
	for i, a := range all {
		if i > 0 {
			initial += ","
		}
		initial += name(i) + "=http://" + a.peer
	}
	a := all[node]
	return []string{
		s.binary, "--name", name(node), "--data-dir", filepath.Join(dir, "data"), "--log-level", "error",
		"--listen-client-urls", "http://" + a.client, "--advertise-client-urls", "http://" + a.client,
		"--listen-peer-urls", "http://" + a.peer, "--initial-advertise-peer-urls", "http://" + a.peer,
		"--initial-cluster", initial, "--initial-cluster-state", "new", "--initial-cluster-token", filepath.Base(filepath.Dir(dir)),
		"--quota-backend-bytes", strconv.Itoa(8 << 30),
	}
}

func (*etcd) leads(ctx context.Context, conn *grpc.ClientConn) bool {
	s, err := etcdserverpb.NewMaintenanceClient(conn).Status(ctx, &etcdserverpb.StatusRequest{})
	return err == nil && s.Leader != 0 && s.Leader == s.Header.MemberId
}

func (*etcd) opening(ttl time.Duration) step {
	request := appendNumber(nil, 1, uint64(ttl.Seconds()))
	return step{
		method:  "/etcdserverpb.Lease/LeaseGrant",
		request: func(b []byte, _ *turn) []byte { return append(b, request...) },
		answer: func(t *turn, message []byte) error {
			t.who = owner{}
			err := fields(message, func(field protowire.Number, number uint64, _ []byte) error {
				if field == 2 {
					t.who.number = int64(number) //nolint:gosec // It is one.
				}
				return nil
			})
			if err == nil && t.who.number <= 0 {
				err = errors.New("no lease was granted")
			}
			return err
		},
	}
}

func (*etcd) registering(_ int, what func(t *turn) instance) step {
	return step{method: "/etcdserverpb.KV/Put", request: func(b []byte, t *turn) []byte {
		in := what(t)
		var space [512]byte
		b = appendBytes(b, 1, append(appendPrefix(space[:0], in.service), in.id...))
		b = appendBytes(b, 2, appendValue(space[:0], in))
		return appendNumber(b, 3, uint64(t.who.number)) //nolint:gosec // As protobuf has it.
	}}
}

// appendValue appends an instance as it is stored.
func appendValue(b []byte, in instance) []byte {
	b = append(append(b, `{"service":"`...), in.service...)
	b = append(append(b, `","id":"`...), in.id...)
	b = append(b, `","address":"10.1.2.3","port":8080,"zone":"eu-central-1a","tags":["v2","canary"],"metadata":{"version":"2.14.3",`...)
	b = strconv.AppendInt(append(b, versionBefore...), int64(in.version), 10)
	return append(b, `","team":"payments","lang":"go"}}`...)
}

// versionBefore is what comes before the version in a value.
const versionBefore = `"commit":"`

func (s *etcd) registeringAlone(what func(t *turn) instance) exchange {
	return exchange{s.opening(time.Hour), s.registering(0, what)}
}

// appendPrefix appends what the keys of a service's instances begin with.
func appendPrefix(b []byte, service string) []byte {
	return append(append(append(b, "/services/"...), service...), '/')
}

// appendInstances appends the fields of a request that is about all instances of a service: from its prefix to the first key
// that does not begin with it.
func appendInstances(b []byte, service string) []byte {
	var space [128]byte
	prefix := appendPrefix(space[:0], service)
	b = appendBytes(b, 1, prefix)
	prefix[len(prefix)-1]++
	return appendBytes(b, 2, prefix)
}

func (*etcd) reading(service func(t *turn) string, linearizable bool, want int) step {
	return step{
		method: "/etcdserverpb.KV/Range",
		request: func(b []byte, t *turn) []byte {
			b = appendInstances(b, service(t))
			if !linearizable {
				b = appendNumber(b, 7, 1) // Serializable.
			}
			return b
		},
		answer: having(2, want),
	}
}

func (*etcd) renewing() renewals {
	return renewals{
		method:  "/etcdserverpb.Lease/LeaseKeepAlive",
		request: func(b []byte, who owner) []byte { return appendNumber(b, 1, uint64(who.number)) }, //nolint:gosec // As protobuf has it.
		answer: func(message []byte) (int, error) {
			var id, ttl uint64
			err := fields(message, func(field protowire.Number, number uint64, _ []byte) error {
				switch field {
				case 2:
					id = number
				case 3:
					ttl = number
				}
				return nil
			})
			if err == nil && int64(ttl) <= 0 { //nolint:gosec // It is one.
				err = fmt.Errorf("lease %d has ended", id)
			}
			return 1, err
		},
	}
}

func (*etcd) watching(service string) changes {
	const created, canceled, events = 3, 4, 11 // Fields of a WatchResponse.
	stands := false
	return changes{
		method:  "/etcdserverpb.Watch/Watch",
		request: appendBytes(nil, 1, appendInstances(nil, service)), // To create one.
		open:    true,
		heard: func(message []byte, changed func(version int)) (bool, error) {
			err := fields(message, func(field protowire.Number, _ uint64, event []byte) error {
				switch field {
				case created:
					stands = true
				case canceled:
					return fmt.Errorf("the watch was cancelled: %q", message)
				case events:
					return within(event, 2, func(kv []byte) error {
						return within(kv, 5, func(value []byte) error {
							version, err := versionOf(value)
							if err == nil {
								changed(version)
							}
							return err
						})
					})
				}
				return nil
			})
			return stands, err
		},
	}
}

// versionOf is the version in a value.
func versionOf(value []byte) (int, error) {
	_, rest, _ := bytes.Cut(value, []byte(versionBefore))
	version, _, found := bytes.Cut(rest, []byte(`"`))
	if !found {
		return 0, fmt.Errorf("a change without a version: %q", value)
	}
	return strconv.Atoi(string(version))
}
