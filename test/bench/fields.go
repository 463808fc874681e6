package main

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// fields calls f with each field of an encoded message, until it returns an error: with its number, or with its data, which
// are a part of the message. So a load looks at what it must know of an answer, and decodes nothing else.
func fields(message []byte, f func(field protowire.Number, number uint64, data []byte) error) error {
	for len(message) > 0 {
		field, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return fmt.Errorf("malformed message: %w", protowire.ParseError(n))
		}
		message = message[n:]
		var number uint64
		var data []byte
		switch kind {
		case protowire.VarintType:
			number, n = protowire.ConsumeVarint(message)
		case protowire.BytesType:
			data, n = protowire.ConsumeBytes(message)
		default:
			n = protowire.ConsumeFieldValue(field, kind, message)
		}
		if n < 0 {
			return fmt.Errorf("malformed field %d: %w", field, protowire.ParseError(n))
		}
		message = message[n:]
		if err := f(field, number, data); err != nil {
			return err
		}
	}
	return nil
}

// within calls f with each of a message's fields of a number that are messages themselves.
func within(message []byte, number protowire.Number, f func(inner []byte) error) error {
	return fields(message, func(field protowire.Number, _ uint64, data []byte) error {
		if field != number {
			return nil
		}
		return f(data)
	})
}

// having returns what judges an answer that must have a field so many times.
func having(field protowire.Number, times int) func(*turn, []byte) error {
	return func(_ *turn, message []byte) error {
		n := 0
		err := fields(message, func(f protowire.Number, _ uint64, _ []byte) error {
			if f == field {
				n++
			}
			return nil
		})
		if err == nil && n != times {
			err = fmt.Errorf("read %d instances, want %d", n, times)
		}
		return err
	}
}

func appendBytes[T string | []byte](b []byte, field protowire.Number, v T) []byte {
	b = protowire.AppendVarint(protowire.AppendTag(b, field, protowire.BytesType), uint64(len(v)))
	return append(b, v...)
}

func appendNumber(b []byte, field protowire.Number, n uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), n)
}
