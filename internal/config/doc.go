// Package config turns milter.yaml into a checked value. Whatever a file can
// say that can't be meant as written is an error that names file, line, key
// and value and tells what would be right; all errors of a file come at once.
// A configuration that Parse returns can be run: no bound is missing, no list
// that must not be empty is, and nothing in it makes an open relay that the
// file alone could show. What only the running MTA shows is not looked for
// here, nor is it known whether a path exists.
package config
