package rpc

import (
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // Registers the codec that is wrapped.
	"google.golang.org/grpc/mem"
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
