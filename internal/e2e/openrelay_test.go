package e2e

import (
	"strings"
	"testing"

	"popgate/internal/lab"
)

// A transport that popgate takes for local delivery must not carry foreign
// mail: then everybody would be local.
func TestServeRefusesAPostfixThatIsAnOpenRelayByConfiguration(t *testing.T) {
	for name, main := range map[string][]string{
		"default_transport":                       {"default_transport = virtual"},
		"sender_dependent_default_transport_maps": {"sender_dependent_default_transport_maps = texthash:/etc/postfix/open"},
		"transport table":                         {"transport_maps = texthash:/etc/postfix/open"},
	} {
		t.Run(name, func(t *testing.T) {
			on(t, "postfix", setup{}, func(t *testing.T, s *site) {
				s.popgate.Must(t, "check") // well so far
				s.popgate.Stop(t)
				s.postfix.Configure(t, lab.PostfixOptions{Milter: true, Main: main,
					Files: map[string]string{"open": "@client.test local:\n* local:\n"}})
				setting, _, _ := strings.Cut(main[0], " ")
				if out, code := s.popgate.Run(t, "check"); code == 0 || !strings.Contains(out, setting) {
					t.Errorf("check exits with %d and says %s", code, out)
				}
				if _, code := s.popgate.Run(t, "serve"); code != 4 {
					t.Errorf("serve exits with %d, want 4", code)
				}
			})
		})
	}
}
