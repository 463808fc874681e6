//go:build !race

package fsm_test

// raceDetector tells that it is on.
const raceDetector = false
