# make demo    the whole story in seconds: no root, no MTA
# make test    every test, with real Postfix, sendmail and Dovecot
# make check   formatting, vet, staticcheck, import arrows, race tests, short fuzz
# make soak    the long runs, with a printed seed
# make deb     a Debian package, in dist
# make rpm     an rpm, for sendmail and Postfix on Red Hat systems

GO      ?= go
BIN     ?= bin
FUZZ    ?= 5s
SOAK    ?= 10m
DIST    ?= dist
PREFIX  ?= /usr/local
TOOL     = $(GO) tool -modfile=contrib/tools/go.mod

.PHONY: all build demo test check fmt vet lint race fuzz bench instructions soak tree deb rpm install clean

all: build

build:
	CGO_ENABLED=0 $(GO) build -trimpath -o $(BIN)/popgate ./cmd/popgate

demo:
	@CGO_ENABLED=0 $(GO) run ./cmd/popgate demo

# The end-to-end tests need root: they put each test on a private host made of
# namespaces, and fetch the mail servers' Debian packages once.
test:
	$(GO) test -timeout 14m ./...

check: fmt vet lint race fuzz

fmt:
	@out=$$(gofmt -l cmd cache contrib internal milter watcher); \
	if [ -n "$$out" ]; then echo "not formatted, run gofmt -w:"; echo "$$out"; exit 1; fi

vet:
	$(GO) vet ./...

lint:
	$(TOOL) staticcheck ./...

# The packages without mail servers; import arrows are among the tests.
race:
	$(GO) test -race -timeout 10m $$($(GO) list ./... | grep -v -e /internal/e2e -e /internal/lab)

# Every fuzz target for FUZZ, one after the other. Until Go 1.27 the fuzzer itself
# can fail when its time is over, without an input (go.dev/issue/75804): then again.
fuzz:
	@set -e; log=$$(mktemp); trap 'rm -f "$$log"' EXIT; for p in $$($(GO) list ./...); do \
		for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz' || true); do \
			echo "fuzz $$p $$f"; \
			for try in 1 2 3; do \
				if $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZ) -fuzzminimizetime 10x $$p >"$$log" 2>&1; then tail -n 3 "$$log"; break; fi; \
				cat "$$log"; \
				if [ $$try = 3 ] || grep -q 'Failing input' "$$log" || ! grep -q 'context deadline exceeded' "$$log"; then exit 1; fi; \
			done; \
		done; \
	done

# The daemon beside its yardsticks (needs gcc and libmilter-dev), as in
# docs/performance.md: BENCH='-quick' for a look, '-only rcpt' for one measure.
bench:
	$(GO) run ./contrib/bench $(BENCH)

# Writes anew what a log line of each class may cost, which make test holds it to.
instructions:
	POPGATE_INSTRUCTIONS=write $(GO) test -count 1 -run '^TestInstructions$$' ./contrib/instructions

# Long runs. Each prints its seed; POPGATE_SEED=n repeats one.
soak:
	POPGATE_SOAK=$(SOAK) POPGATE_CONVERSATIONS=1000000 $(GO) test -timeout 0 -count 1 -v -run 'Storm|Mutated|Kill|Crash' ./watcher/... ./milter ./internal/state
	$(GO) test -timeout 0 -count 200 -run 'Sequence|Changes|Restore' ./internal/ledger
	POPGATE_KILLS=1000 $(GO) test -timeout 0 -count 1 -v -run KillSoak ./internal/e2e
	POPGATE_SOAK=$(SOAK) $(GO) test -timeout 0 -count 1 -v -run SetupWires ./internal/e2e
	for r in bookworm trixie; do POPGATE_SOAK=$(SOAK) POPGATE_LAB_RELEASE=$$r $(GO) test -timeout 0 -count 1 -v -run Package ./internal/e2e || exit 1; done

install: build
	install -D -m 755 $(BIN)/popgate $(DESTDIR)$(PREFIX)/sbin/popgate
	install -D -m 640 milter.yaml.example $(DESTDIR)/etc/popgate/milter.yaml.example
	install -D -m 644 man/popgate.8 $(DESTDIR)$(PREFIX)/share/man/man8/popgate.8
	install -D -m 644 man/milter.yaml.5 $(DESTDIR)$(PREFIX)/share/man/man5/milter.yaml.5

# The sources with the modules they need, to build packages from without network.
tree:
	rm -rf $(DIST)/popgate
	mkdir -p $(DIST)/popgate
	git ls-files -z | xargs -0 cp --parents -t $(DIST)/popgate
	cd $(DIST)/popgate && $(GO) mod vendor

# Needs build-essential and debhelper. The compiler's cache is lent to the build, which has no home.
deb: tree
	cd $(DIST)/popgate && GOCACHE=$$($(GO) env GOCACHE) dpkg-buildpackage -b -us -uc

# Needs rpmbuild, from Debian's package rpm or from any Red Hat system.
rpm: tree
	cd $(DIST)/popgate && rpmbuild -bb --build-in-place --define "_rpmdir $$(cd .. && pwd)" --define "_topdir $$(cd .. && pwd)/rpmbuild" \
		--define "release_version $$(sed -n '1s/.*(\(.*\)).*/\1/p' debian/changelog)" contrib/rpm/popgate.spec

clean:
	rm -rf $(BIN) $(DIST)
