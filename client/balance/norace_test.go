//go:build !race

package balance

const fewer = 1
