// Package certs is TLS from files: what a node shows of itself, whom it trusts, and who is on the other side.
//
// An ID is what a certificate says of its holder: trust domain, role and name, in a SAN of the form that SPIFFE has given
// it, so that other authorities can issue it. A Source holds the certificate, key and authorities of one port. It reads
// their files again and again, keeps the old ones when the new ones are bad, makes configurations for crypto/tls that
// always use the latest, and ends connections whose other side is not trusted any longer.
//
// The package knows neither peers nor calls: cluster/peer and rpc speak TLS through it, cmd/regd makes the Sources.
package certs
