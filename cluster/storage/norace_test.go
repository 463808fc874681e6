//go:build !race

package storage

const fewer = 1
