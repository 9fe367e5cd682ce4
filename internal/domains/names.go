package domains

import (
	"maps"
	"slices"

	"popgate/internal/relay"
)

// Names gives the names known to be the site's, in order: a domain, or with a
// dot in front all those below it.
func (s *Set) Names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []string
	for _, name := range slices.Sorted(maps.Keys(s.names)) {
		if s.names[name] >= relay.DomainFound {
			all = append(all, name)
		}
	}
	return all
}
