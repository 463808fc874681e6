// Package build builds regd for chaos runs: with a wall clock that can be moved while the process runs (Clock), with
// instruments that environment variables switch on (EnvApplied and the others), and, to prove that a run notices, with
// one of its promises broken (Mutants). The source tree stays as it is: what differs is handed to the compiler as an
// overlay, made from the source of the day by replacing texts that must be there exactly once. Start at Build.
package build
