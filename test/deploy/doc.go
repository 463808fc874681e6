// Package deploy holds the tests of what lies in the folder deploy, and of what the documentation tells operators: that
// manifests are what Kubernetes takes and fit each other and the binary, that alerts fire when they should, and that every
// metric, alert, runbook and command which is named exists. It is a module of its own, so that the types of Kubernetes and
// the language of Prometheus stay out of regd's.
package deploy
