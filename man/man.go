// Package man holds the manual pages, in mdoc. What `popgate man` prints and
// what the package installs is this text.
package man

import _ "embed"

// Popgate is popgate(8).
//
//go:embed popgate.8
var Popgate string

// MilterYAML is milter.yaml(5).
//
//go:embed milter.yaml.5
var MilterYAML string
