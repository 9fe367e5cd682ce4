//go:build !race

package milter

const raced = false
