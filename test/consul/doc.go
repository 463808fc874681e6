// Package consul tries the door for Consul's clients with the client that most programs have, hashicorp/consul/api, and its watch
// plans, against a cluster of real processes. It is a module of its own, so that they stay out of regd's.
package consul
