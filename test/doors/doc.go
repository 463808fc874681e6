// Package doors tests the front doors for foreign protocols as their users have them: with real clients, against real nodes.
package doors
