// Package dns is a front door for whoever finds services by DNS: it answers A, AAAA, SRV, TXT, PTR, SOA and NS from the
// State that its node has, over UDP and TCP, and looks nothing up elsewhere. docs/dns.md says what can be asked.
//
// A query takes this way:
//
//	server, udp, tcp   a packet comes in, within limits (limit)
//	question           its bytes are taken apart: id, name, type, EDNS
//	name               what the name asks for: a service with a tag, an instance, a node
//	translate, records that is looked up in a State: the answer, as records in wire form
//	compose            the message: records in the order that is right for who asks, as many as fit
//
// All from question to compose is pure. Answers about services are cached in wire form until the service changes (cache),
// so that a query costs a look-up and some copying, and allocates nothing.
//
// The door is anonymous: DNS has no tokens. What the identity "anonymous" may not discover does not exist here.
package dns
