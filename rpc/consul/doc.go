// Package consul is a front door for clients of Consul's HTTP API: they register, check, find and watch services with the libraries
// and tools that they have. docs/migrate-from-consul.md says what works, and what is different.
//
// A request takes this way:
//
//	server, routes      it is let in, its path and method are looked up
//	request             its parameters are taken apart, and who asks
//	decode              its body, in whichever spelling
//	register, check     what is registered becomes an instance of the registry
//	agent, catalog, health, status   what is asked for is looked up in a State
//	translate, shapes   an instance becomes what Consul would show
//	block, ledger       a query waits until what it asks for has changed
//	census              what is looked up by node, service id or check id is found
//	kv, session, txn, draft   keys, their owners, and several of them at once
//
// # One world
//
// A service of Consul is an instance of the registry under its service's name. What the registry has no field for (the node, the
// order of tags, notes of checks) is kept as metadata "consul.io/...", which only this door shows as what it means. An instance
// that came by another door has its address as its node.
//
// # Nodes and agents
//
// There are no agents. A request to /v1/agent/... is made at the agent of the host that it comes from: its address is the
// name of that node, or what the header X-Regd-Node says. A service id is unique in a node, an id of the registry in a service;
// so a second node that registers the same id of the same service gets "ID@NODE". Whichever node of the cluster is asked, the
// agent is the same.
package consul
