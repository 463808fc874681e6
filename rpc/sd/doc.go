// Package sd is a front door for Prometheus and whoever else finds targets by HTTP: GET /sd/prometheus answers with all
// instances that are asked for, as http_sd_configs wants them. docs/prometheus.md says what can be asked.
//
// A request takes this way:
//
//	server     a request is let in, and answered
//	query      its parameters are taken apart
//	translate  what they ask for in a State: targets with labels
//
// Prometheus keeps the targets that it has when it gets an error, and drops them when it gets fewer. So a node that can't know
// what is registered now says so, and never answers with less.
package sd
