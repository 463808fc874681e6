package main

import "strings"

// tlsTrouble is what TLS says when two sides do not come together, what that means, and what to do. crypto/tls and gRPC
// have no types for most of it by the time that it gets here, and the other side sends but a word.
type tlsTrouble struct {
	said, means, hint string
	// denied: the node knows the client's certificate, or misses it, and does not let it in.
	denied bool
}

// mayWantTLS is said when a connection ends at its beginning: that is how the wrong protocol is answered, either way.
const mayWantTLS = "what listens there does not speak gRPC, or one side uses TLS and the other does not; " +
	"the gRPC port of a node is 7400 by default"

// tlsTroubles are in order: the first that fits is it.
func tlsTroubles() []tlsTrouble {
	return []tlsTrouble{
		{
			said: "first record does not look like a TLS handshake", means: "the node does not use TLS",
			hint: "leave out --tls, --ca-cert and --cert, and unset $REGD_TLS, $REGD_CA_CERT and $REGD_CERT",
		},
		{
			said: "remote error: tls: certificate required", means: "the node wants a certificate of the client", denied: true,
			hint: "give one by --cert and --cert-key; regd tls client  makes one",
		},
		{
			said: "remote error: tls: unknown certificate authority", means: "the node does not trust the authority of the client's certificate",
			denied: true, hint: "the node trusts those of its --tls-ca: give a certificate of one of them by --cert and --cert-key",
		},
		{
			said: "remote error: tls: expired certificate", means: "the client's certificate has expired, or is not valid yet", denied: true,
			hint: "regd tls show FILE  tells until when the one of --cert is valid; regd tls client  makes another",
		},
		{
			said: "remote error: tls: bad certificate", means: "the node does not accept the client's certificate", denied: true,
			hint: "its role must be client and its trust domain that of the node: see  regd tls show  for the one of --cert; " +
				"the node's log says why",
		},
		{
			said: "remote error: tls: no application protocol", means: "this port is for other nodes",
			hint: "the gRPC port of a node is 7400 by default",
		},
		{
			said: "remote error: tls: protocol version not supported", means: "the node wants a newer version of TLS",
			hint: "nodes speak TLS 1.3 unless --tls-min-version allows 1.2",
		},
		{
			said: "certificate signed by unknown authority", means: "the node's certificate is of an authority that is not trusted here",
			hint: "give the authority by --ca-cert or $REGD_CA_CERT: the ca.crt of  regd tls init",
		},
		{
			said: "certificate has expired or is not yet valid", means: "the node's certificate has expired, or is not valid yet",
			hint: "look at it with  regd tls show, and at the clocks; nodes read renewed files by themselves",
		},
		{
			said: "certificate is valid for", means: "the node's certificate is not for that host",
			hint: "use one of its hosts for --endpoint, or name one by --server-name",
		},
		{
			said: "x509: cannot validate certificate for", means: "the node's certificate is not for an IP address",
			hint: "use its name for --endpoint, or name it by --server-name",
		},
		{
			said: "incompatible key usage", means: "the node's certificate is not one for servers",
			hint: "the extended key usage must have server auth: see  regd tls show",
		},
	}
}

// tlsTroubleOf finds the trouble that a text tells of.
func tlsTroubleOf(text string) (tlsTrouble, bool) {
	for _, row := range tlsTroubles() {
		if strings.Contains(text, row.said) {
			return row, true
		}
	}
	return tlsTrouble{}, false
}
