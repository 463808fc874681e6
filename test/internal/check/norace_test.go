//go:build !race

package check_test

const fewer = 1
