package rpc

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // Registers the codec that is wrapped.
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// codec is the ordinary protobuf codec, which also takes answers that are encoded already: a State keeps its instances
// as bytes, and decoding them to encode them again would be most of the work of an answer. On the wire there is no
// difference, so that any client works.
type codec struct{ encoding.CodecV2 }

// newCodec returns the codec for grpc.ForceServerCodecV2.
func newCodec() encoding.CodecV2 { return codec{encoding.GetCodecV2("proto")} }

// Marshal encodes a message, or passes on what is encoded.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if e, ok := v.(*encoded); ok {
		return mem.BufferSlice{e.buffer}, nil
	}
	return c.CodecV2.Marshal(v)
}

// Unmarshal decodes a message, or leaves it as it came.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if u, ok := v.(*undecoded); ok {
		*u = data.Materialize()
		return nil
	}
	return c.CodecV2.Unmarshal(data, v)
}

// undecoded is a message that is decoded by whoever uses it, not by who receives it.
type undecoded []byte

// decode does what the codec would have done.
func (u undecoded) decode(m proto.Message) error {
	if err := proto.Unmarshal(u, m); err != nil {
		return status.Errorf(codes.Internal, "decode request: %v", err)
	}
	return nil
}

// encoded is an encoded message. It can be sent once: the transport frees its buffer.
type encoded struct{ buffer mem.Buffer }

// maxPooled is the largest message whose buffer is pooled. The next size of the pool is 1 MiB, too much to hold on to
// for each slow reader.
const maxPooled = 32 << 10

// newEncoded returns a message of exactly the given size, which write appends to the slice that it gets.
func newEncoded(size int, write func([]byte) []byte) *encoded {
	if mem.IsBelowBufferPoolingThreshold(size) || size > maxPooled {
		return &encoded{mem.SliceBuffer(write(make([]byte, 0, size)))}
	}
	pool := mem.DefaultBufferPool()
	buf := pool.Get(size)
	*buf = write((*buf)[:0])
	return &encoded{mem.NewBuffer(buf, pool)}
}

// answerEncoded handles a method whose answers are encoded already. For the others the like of it is generated.
func answerEncoded[Server, Request any](
	method string, answer func(Server, context.Context, *Request) (*encoded, error),
) grpc.MethodHandler {
	return func(srv any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
		in := new(Request)
		if err := decode(in); err != nil {
			return nil, err
		}
		handle := func(ctx context.Context, req any) (any, error) {
			return answer(srv.(Server), ctx, req.(*Request))
		}
		if intercept == nil {
			return handle(ctx, in)
		}
		return intercept(ctx, in, &grpc.UnaryServerInfo{Server: srv, FullMethod: method}, handle)
	}
}
