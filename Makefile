# Every tool comes from the Go module proxy through a modfile of its own in
# tools/, so Go and make are enough. The race detector needs a C compiler too.

GO      ?= go
LINT    := $(GO) tool -modfile=$(CURDIR)/tools/lint.mod golangci-lint
BUF     := $(GO) tool -modfile=tools/buf.mod buf

# What to narrow on the command line: make test PKG=./fsm/... TESTFLAGS='-run Expire -v'
PKG       ?= ./...
TESTFLAGS ?=
BENCH     ?= .
BENCHFLAGS ?=
COUNT     ?= 5
SEED      ?=
IMAGE     ?= regd:devel
MUTANT    ?= 1
FUZZ      ?=
FUZZTIME  ?= 20s

# Empty when the race detector can't run here.
RACE := $(if $(filter 1,$(shell $(GO) env CGO_ENABLED)),$(if $(shell command -v $(firstword $(shell $(GO) env CC))),-race))

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
COMMIT  ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
DATE    ?= $(shell git log -1 --format=%cI 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT) -X main.date=$(DATE)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help build run test race e2e bench bench-doors microbench fuzz chaos chaos-mutants plays lint fmt generate check \
	check-generated check-breaking check-format check-tidy check-bench check-consul check-deploy check-helm image vet clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build the static binary bin/regd
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o bin/regd ./cmd/regd

image: build ## Build the container image IMAGE (regd:devel) with Docker: the static binary and nothing else
	docker build --build-arg VERSION='$(VERSION)' -t '$(IMAGE)' .

run: build ## Run a local cluster of three processes with demo services, data in .regd-dev
	bin/regd dev --demo --data-dir .regd-dev

# What vet finds, make check finds. Test binaries are linked without DWARF: it need not be made either.
test: ## Run all tests, with the race detector (narrow: PKG=./fsm TESTFLAGS='-run Expire')
	@test -n '$(RACE)' || echo 'no C compiler: testing without the race detector' >&2
	$(GO) test $(RACE) -vet=off -gcflags=./...=-dwarf=false -timeout 5m $(TESTFLAGS) $(PKG)

race: ## Run the tests COUNT times (5), to hunt rare races
	$(GO) test $(RACE) -timeout 30m -count=$(COUNT) $(TESTFLAGS) $(PKG)

e2e: ## Run only the tests that start real processes, uncached and verbose
	$(GO) test $(RACE) -timeout 10m -count=1 -v $(TESTFLAGS) ./cmd/... $(if $(wildcard test),./test/...)

bench: build ## Measure regd beside etcd, three processes each (narrow: BENCHFLAGS='-only read -rounds 1'; report in .bench)
	$(GO) build -modfile=tools/etcd.mod -trimpath -o bin/etcd go.etcd.io/etcd/server/v3
	cd test/bench && $(GO) run . -regd ../../bin/regd -etcd ../../bin/etcd -out ../../.bench -commit '$(VERSION)' $(BENCHFLAGS)

bench-doors: ## Measure the doors: DNS beside a plain server (needs dnsperf), 10,000 waiting queries of Consul's clients (two minutes)
	$(GO) test ./test/doors -run '^$$' -bench DNS -benchtime 1x -timeout 10m
	$(GO) test ./test/doors -run '^$$' -bench Waiting -benchtime 300x -timeout 10m

microbench: ## Run the benchmarks of single functions (narrow: PKG=./fsm BENCH=Apply)
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem -timeout 30m $(TESTFLAGS) $(PKG)

# The targets are found, so that none is forgotten. Each input costs 10 tries to make it smaller at most, else that may
# take all the time. Up to Go 1.26 a run may fail at its very end with nothing but "context deadline exceeded"
# (https://go.dev/issue/75804): that alone is no finding.
fuzz: ## Fuzz every target for FUZZTIME (20s), one after the other (narrow: PKG=./rpc FUZZ=Watch)
	@out=$$(mktemp) && trap 'rm -f "$$out"' EXIT; \
	pkgs=$$($(GO) list $(PKG)) || exit 1; \
	for pkg in $$pkgs; do \
		found=$$($(GO) test -list '^Fuzz.*$(FUZZ)' $$pkg) || { echo "$$found"; exit 1; }; \
		for target in $$(echo "$$found" | grep '^Fuzz'); do \
			echo "$$pkg $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$pkg >"$$out" 2>&1 || \
			{ grep -q '^    context deadline exceeded$$' "$$out" && ! grep -q 'Failing input\|seed corpus\|fuzzing process\|panic' "$$out"; } || \
			{ cat "$$out"; exit 1; }; \
			grep '^fuzz: elapsed' "$$out" | tail -n 1; \
		done; \
	done

# First the tools that it relies on are tested themselves.
chaos: ## Torture five processes for some minutes, as root with all faults (again: SEED=7; report in .chaos)
	CHAOS=1 $(GO) test ./test/chaos/internal/... -count=1 -timeout 5m
	CHAOS=1 CHAOS_SEED=$(SEED) CHAOS_REPORT=$(CURDIR)/.chaos $(GO) test ./test/chaos/deck -run 'TestDeck$$' -count=1 -v -timeout 20m
	CHAOS=1 $(GO) test ./test/chaos -run Hostile -count=1 -v -timeout 5m

# As root, for the StatefulSet; the upgrade needs the commit before the last change.
plays: ## Play what operators do: the StatefulSet, the disaster runbook, a rolling upgrade (two minutes)
	CHAOS=1 $(GO) test ./test/chaos/internal/pods -count=1 -timeout 2m
	CHAOS=1 $(GO) test ./test/chaos -run 'StatefulSet|Disaster|Upgrade' -count=1 -v -timeout 15m

chaos-mutants: ## Show that each of ten slips in the product is caught (one: MUTANT=M3)
	CHAOS_MUTANTS=$(MUTANT) $(GO) test ./test/chaos/deck -run TestMutants -count=1 -v -timeout 60m

lint: ## Lint Go code (import rules included) and proto files
	$(LINT) run
	$(BUF) lint

fmt: ## Format Go code and proto files
	$(LINT) fmt
	$(BUF) format --write

# Generated beside the tree first: when buf fails, the committed code is still there.
generate: ## Rewrite the generated code from proto/
	@rm -rf .gen
	$(BUF) generate --output .gen
	@find proto -name '*.pb.go' -exec rm -f {} +
	@cp -R .gen/proto/. proto/ && rm -rf .gen

check: check-generated check-breaking check-tidy check-format lint vet check-bench check-consul check-deploy ## Verify what CI verifies, apart from the tests

check-generated: generate
	@git diff --exit-code --stat -- 'proto/*.pb.go' && \
	test -z "$$(git ls-files --others -- 'proto/*.pb.go' | tee /dev/stderr)" || \
	{ echo 'generated code is not what git has: run "make generate", then "git add proto"' >&2; exit 1; }

# Against the latest release. Before the first one there is nothing to break.
check-breaking:
	@tag=$$(git describe --tags --abbrev=0 --match 'v[0-9]*' 2>/dev/null) || exit 0; \
	set -x; $(BUF) breaking --against ".git#tag=$$tag"

check-format:
	$(LINT) fmt --diff
	$(BUF) format --diff --exit-code

check-tidy:
	$(GO) mod tidy -diff

# Servers run on Linux; who tries regd out may do so on a Mac.
vet:
	$(GO) vet ./...
	GOOS=darwin $(GO) build -o /dev/null ./cmd/regd

# A module of its own: what it needs of etcd stays out of regd's.
check-bench:
	cd test/bench && $(GO) mod tidy -diff && $(GO) vet ./... && $(LINT) run && $(LINT) fmt --diff && $(GO) test ./...

# Manifests are rendered and held against the types of Kubernetes and the binary, alerts are tried, documents are held against
# the reference. A module of its own too. What vet finds is among the linters here: to have it alone takes half a minute more.
check-deploy: build ## Verify what is in deploy and docs: manifests, chart, unit, alerts, dashboard, runbooks, links, flags
	cd test/deploy && $(GO) mod tidy -diff && $(LINT) run && $(LINT) fmt --diff && $(GO) test -vet=off ./...

# Not part of check: where nothing is compiled yet, Helm takes ten minutes.
check-helm: build ## Hold what check-deploy makes of the chart against Helm itself
	cd test/deploy && HELM=1 $(GO) test -vet=off -run TestHelmRendersTheSame -v -timeout 20m ./...

# The door for Consul's clients, tried by the client that most programs have against three processes, and by what Prometheus has
# to find its targets: a minute. Modules of their own.
check-consul: ## Verify that Consul's Go client works with regd, and Prometheus' discovery by it
	cd test/consul && $(GO) mod tidy -diff && $(GO) vet ./... && $(LINT) run && $(LINT) fmt --diff && $(GO) test ./...
	cd test/prometheus && $(GO) mod tidy -diff && $(LINT) run && $(LINT) fmt --diff && $(GO) test -vet=off ./...

clean: ## Remove what the other targets made, the .regd-dev cluster included
	rm -rf bin .gen .regd-dev .chaos .bench
