package config

import (
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// rename is a key that was released under another name. The old name stays
// accepted, with a warning, for one major version.
type rename struct{ old, now string }

// renamed are the keys that have successors. No key has been renamed yet.
var renamed []rename

// succeed moves values given under an old name to where their successor
// stands, so that the readers know the new names only.
func (r *reader) succeed(root *yaml.Node, renames []rename) {
	for _, rn := range renames {
		k, v := take(root, rn.old)
		if k == nil {
			continue
		}
		path := strings.Split(rn.now, ".")
		if place := lookup(root, path); place != nil {
			r.fail(k.Line, rn.old, "is called %s now, which is given in line %d; remove this one", rn.now, place.Line)
			continue
		}
		r.warn(k.Line, rn.old, "is called %s now; this name goes away in the next major version", rn.now)
		put(root, path, k, v)
	}
}

// index gives where in a mapping the key's node stands, or -1.
func index(m *yaml.Node, key string) int {
	if m == nil || m.Kind != yaml.MappingNode {
		return -1
	}
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Kind == yaml.ScalarNode && m.Content[i].Value == key {
			return i
		}
	}
	return -1
}

// lookup gives the key node at the path, or nil.
func lookup(m *yaml.Node, path []string) *yaml.Node {
	i := index(m, path[0])
	switch {
	case i < 0:
		return nil
	case len(path) == 1:
		return m.Content[i]
	default:
		return lookup(m.Content[i+1], path[1:])
	}
}

// take removes the key at the path from its mapping.
func take(m *yaml.Node, path string) (k, v *yaml.Node) {
	first, rest, deeper := strings.Cut(path, ".")
	i := index(m, first)
	if i < 0 {
		return nil, nil
	}
	if deeper {
		return take(m.Content[i+1], rest)
	}
	k, v = m.Content[i], m.Content[i+1]
	m.Content = slices.Delete(m.Content, i, i+2)
	return k, v
}

// put enters a value at the path, making the mappings on the way. The new
// nodes carry the old key's line, where errors belong.
func put(m *yaml.Node, path []string, k, v *yaml.Node) {
	name := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: path[0], Line: k.Line, Column: k.Column}
	if len(path) == 1 {
		m.Content = append(m.Content, name, v)
		return
	}
	i := index(m, path[0])
	if i < 0 {
		m.Content = append(m.Content, name, &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Line: k.Line, Column: k.Column})
		i = len(m.Content) - 2
	}
	put(m.Content[i+1], path[1:], k, v)
}
