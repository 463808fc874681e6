package history_test

import (
	"context"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	"github.com/regd-io/regd/test/internal/history"
)

// silent is a server that says nothing.
type silent struct {
	apiv1.UnimplementedRegistryServiceServer
}

func (silent) Watch(stream grpc.BidiStreamingServer[apiv1.WatchRequest, apiv1.WatchResponse]) error {
	<-stream.Context().Done()
	return stream.Context().Err()
}

// Whether somebody waits for the next message then makes no difference.
func TestAStreamThatIsGivenUpHasEnded(t *testing.T) {
	for _, reading := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			lis := bufconn.Listen(1 << 16)
			server := grpc.NewServer()
			apiv1.RegisterRegistryServiceServer(server, silent{})
			go func() { _ = server.Serve(lis) }()
			defer server.Stop()
			r := history.NewRecorder()
			conn, err := grpc.NewClient("passthrough:///n1", append(r.DialOptions("c1", "n1"),
				grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))...)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			stream, err := apiv1.NewRegistryServiceClient(conn).Watch(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if reading {
				if _, err = stream.Recv(); err == nil {
					t.Error("something was received")
				}
			}
			time.Sleep(2 * time.Second)
			synctest.Wait()
			messages := r.History().Messages
			last := messages[len(messages)-1]
			if len(messages) != 2 || last.Direction != history.Ended || last.At != time.Second || last.Err == "" {
				t.Errorf("reading %v: messages %+v, want the end after a second", reading, messages)
			}
		})
	}
}
