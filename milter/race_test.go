//go:build race

package milter

const raced = true
