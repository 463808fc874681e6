// Package prometheus tries the door for Consul's clients with a client that many have without knowing it: discovery/consul, by
// which Prometheus finds its targets. Debian builds Prometheus without it, so it runs here as a library. It is a module of its
// own, so that Prometheus stays out of regd's.
package prometheus
