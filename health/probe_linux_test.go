package health

import (
	"net"
	"strconv"
	"syscall"
	"testing"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

func TestTCPThatDoesNotAnswerFailsInTime(t *testing.T) {
	t.Parallel()
	check := &registryv1.Check{Kind: &registryv1.Check_Tcp{Tcp: &registryv1.TCPCheck{Address: blackHole(t)}}}
	wantResult(t, probeOnce(t, testConfig(), "", within(quick, check)), statusCritical, "no answer within 60ms")
}

// blackHole returns the address of a listener with a full backlog: the kernel drops what asks for a connection.
func blackHole(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err = syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err = syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(name.(*syscall.SockaddrInet4).Port))
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return address
}
