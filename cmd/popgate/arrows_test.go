package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// Which rooms may know of which. Data flows from the sources to the ledger, to
// the store, to the gate, to the doors; only this package sees them all.
var arrows = map[string][]string{
	"popgate/internal/relay":    {},
	"popgate/contrib":           {},
	"popgate/man":               {},
	"popgate/internal/ledger":   {"popgate/internal/relay"},
	"popgate/internal/gate":     {"popgate/internal/relay"},
	"popgate/internal/state":    {"popgate/internal/relay"},
	"popgate/internal/domains":  {"popgate/internal/postconf", "popgate/internal/relay", "golang.org/x/net/idna", "golang.org/x/net/publicsuffix"},
	"popgate/internal/config":   {"popgate/internal/relay", "popgate/internal/domains", "gopkg.in/yaml.v3"},
	"popgate/internal/control":  {"popgate/internal/listen", "popgate/internal/relay"},
	"popgate/internal/logging":  {"popgate/internal/gate"},
	"popgate/internal/metrics":  {"popgate/internal/listen", "popgate/internal/relay", "github.com/prometheus/client_golang/prometheus", "github.com/prometheus/client_golang/prometheus/collectors", "github.com/prometheus/client_golang/prometheus/promhttp"},
	"popgate/internal/listen":   {"popgate/internal/relay"},
	"popgate/internal/probe":    {},
	"popgate/internal/policy":   {"popgate/internal/listen", "popgate/internal/relay"},
	"popgate/cache":             {"popgate/internal/relay", "github.com/patrickmn/go-cache"},
	"popgate/internal/postconf": {},
	"popgate/internal/wiring":   {"popgate/internal/postconf", "github.com/emersion/go-milter"},
	"popgate/milter":            {"popgate/internal/listen", "popgate/internal/relay", "github.com/emersion/go-milter"},
	"popgate/watcher":           {"popgate/watcher/format", "popgate/internal/relay", "github.com/fsnotify/fsnotify"},
	"popgate/watcher/journal":   {"popgate/watcher", "popgate/watcher/format", "popgate/internal/relay"},
	"popgate/watcher/push":      {"popgate/watcher", "popgate/internal/listen", "popgate/internal/relay"},
	"popgate/watcher/syslog":    {"popgate/watcher", "popgate/watcher/format", "popgate/internal/listen", "popgate/internal/relay"},
	"popgate/watcher/format":    {"popgate/internal/relay"},
	// What it counts is the log path alone.
	"popgate/contrib/instructions": {"popgate/watcher", "popgate/watcher/format", "popgate/internal/relay"},
}

// unbound may import anything: they are wiring, and the tests' laboratory.
var unbound = []string{"popgate/cmd/popgate", "popgate/internal/lab", "popgate/internal/e2e", "popgate/contrib/bench"}

func TestImportArrows(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", "{{.ImportPath}} {{join .Imports \" \"}}", "popgate/...").CombinedOutput()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, out)
	}
	seen := 0
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) == 0 || slices.Contains(unbound, f[0]) {
			continue
		}
		may, ok := arrows[f[0]]
		if !ok {
			t.Errorf("package %s has no place in the structure: add it to arrows with what it may import", f[0])
			continue
		}
		seen++
		for _, allowed := range may {
			if !slices.Contains(f[1:], allowed) {
				t.Errorf("%s may import %s and doesn't; take the arrow out", f[0], allowed)
			}
		}
		for _, imported := range f[1:] {
			standard := !strings.Contains(strings.SplitN(imported, "/", 2)[0], ".") && !strings.HasPrefix(imported, "popgate/")
			if !standard && !slices.Contains(may, imported) {
				t.Errorf("%s imports %s, which it may not", f[0], imported)
			}
		}
	}
	if seen < len(arrows) {
		t.Errorf("%d of %d packages seen; take those that are gone out of arrows", seen, len(arrows))
	}
	// relay reads no clock and opens nothing.
	for _, banned := range []string{"os", "net", "context", "log/slog", "io"} {
		out, err := exec.Command("go", "list", "-f", "{{join .Imports \" \"}}", "popgate/internal/relay").Output()
		if err != nil {
			t.Fatal(err)
		}
		if slices.Contains(strings.Fields(string(out)), banned) {
			t.Errorf("internal/relay imports %s", banned)
		}
	}
}
