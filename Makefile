# Stopgap: everything a developer or CI does. `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
GO ?= go
TOOLS := $(CURDIR)/.tools
export PATH := $(TOOLS):$(PATH)
# Every binary without cgo, so that one built here runs on any Linux.
export CGO_ENABLED ?= 0
LDFLAGS := -s -w
PROTOVALIDATE := github.com/bufbuild/protovalidate@v1.2.2
AGENTS ?= 2000
TESTFLAGS ?=
# Only ends what hangs: every wait in a test has a deadline of its own, which STOPGAP_PATIENCE scales (e2e/patience).
TEST_TIMEOUT ?= 45m

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

.PHONY: build
build: ## build the three programs, and those of lab, demo and benchmark, into bin/
	@mkdir -p bin
	@$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./controller/cmd/... ./agent/cmd/... ./e2e/cmd/...

.PHONY: demo
demo: build ## play the main job with six lab servers; KEEP=1 leaves it running
	@bin/stopgap-demo $(if $(KEEP),-keep)

.PHONY: test
test: ## run every test (needs a C compiler for the race detector; without one it runs without)
	@if CGO_ENABLED=1 $(GO) env CC | xargs -I{} sh -c 'command -v {} >/dev/null'; then \
	  CGO_ENABLED=1 $(GO) test -race -timeout $(TEST_TIMEOUT) $(TESTFLAGS) ./...; \
	else \
	  echo "no C compiler: testing without the race detector (apt-get install gcc)"; $(GO) test -timeout $(TEST_TIMEOUT) $(TESTFLAGS) ./...; \
	fi

.PHONY: bench
bench: build ## measure a fleet of AGENTS light agents on this machine, and what evaluating rewrite rules costs; prints JSON
	@$(GO) test -run '^$$' -bench . ./shared/urlrewrite ./controller/internal/simulate 1>&2
	@$(GO) test -run '^$$' -bench IdleAgent -benchtime 1x ./e2e 1>&2
	@if command -v wine >/dev/null; then TESTFLAGS='-run ^$$ -bench IdleAgent -benchtime 1x' e2e/wine/run.sh 1>&2; else echo "no wine: the idle agent under Wine is not measured" 1>&2; fi
	@bin/stopgap-bench -agents $(AGENTS)

# By count, as 20000x, in CI: with a time, go test reports "context deadline exceeded" as a failure when the time ends while a
# worker minimises an input (go.dev/issue/75804). Minimising is kept short, or it takes all of a short run.
.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME (default 30s; or a count, as 20000x) each
	@for pkg in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$pkg 2>/dev/null | grep '^Fuzz'); do \
	    echo "== $$pkg $$f"; $(GO) test $$pkg -run '^$$' -fuzz "^$$f$$" -fuzztime $${FUZZTIME:-30s} -fuzzminimizetime 50x || exit 1; \
	  done; \
	done

# Tools are built from modules of their own, so that the product's go.mod stays short.
$(TOOLS)/.proto: tools/go.mod tools/go.sum
	@mkdir -p $(TOOLS)
	cd tools && $(GO) build -o $(TOOLS)/ tool
	@touch $@

$(TOOLS)/.lint: tools/lint/go.mod tools/lint/go.sum
	@mkdir -p $(TOOLS)
	cd tools/lint && $(GO) build -o $(TOOLS)/ tool
	@touch $@

.PHONY: tools
tools: $(TOOLS)/.proto $(TOOLS)/.lint ## build the pinned tools into .tools/

.PHONY: generate
generate: $(TOOLS)/.proto ## generate Go from the protos
	@install -D -m 0644 "$$($(GO) mod download -json $(PROTOVALIDATE) | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')/proto/protovalidate/buf/validate/validate.proto" proto/buf/validate/validate.proto
	buf generate

.PHONY: generate-check
generate-check: generate ## fail when the committed generated code is stale
	@git diff --exit-code --stat -- proto || { echo "proto/ is stale: run make generate and commit"; exit 1; }
	@test -z "$$(git ls-files --others --exclude-standard proto)" || { echo "proto/ has files that are not committed"; exit 1; }

# The protocol as released, with which `make lint` compares: proto/released.binpb, because a clone may lack tags and history. It is
# made once for each release. fleet.proto was not released before 1.1.0; the other files are those of agents of version 1.0.0.
RELEASED_REF ?= 5edcd9c
RELEASED_PROTOS := agent local mitigation types
.PHONY: released
released: $(TOOLS)/.proto ## write proto/released.binpb; only for a release
	@dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && cp -r buf.yaml proto "$$dir" && rm -f "$$dir/proto/released.binpb" && \
	  for f in $(RELEASED_PROTOS); do git show $(RELEASED_REF):proto/stopgap/v1/$$f.proto >"$$dir/proto/stopgap/v1/$$f.proto" || exit 1; done && \
	  cd "$$dir" && buf build --exclude-source-info -o "$(CURDIR)/proto/released.binpb"

.PHONY: lint
lint: $(TOOLS)/.proto $(TOOLS)/.lint ## buf lint, buf breaking, golangci-lint
	buf lint
	buf breaking --against proto/released.binpb
	golangci-lint run --allow-parallel-runners ./...
	GOOS=windows golangci-lint run --allow-parallel-runners ./agent/... ./shared/...

.PHONY: windows
windows: ## build the agent for Windows
	@mkdir -p bin
	GOOS=windows GOARCH=amd64 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/stopgap-agent.exe ./agent/cmd/stopgap-agent

VERSION = $(shell sed -n 's/^const Version = "\(.*\)"/\1/p' shared/version.go)

.PHONY: msi
msi: windows ## the agent's MSI into bin/; SIGN_CERT and SIGN_KEY (PEM) sign it
	@deploy/windows/msi.sh bin/stopgap-agent.exe $(VERSION) bin/stopgap-agent-$(VERSION).msi

.PHONY: test-windows
test-windows: ## the agent that ships, under Wine: MSI, service, mitigations, SIGKILL, upgrade, uninstall (installs Wine as root)
	@e2e/wine/run.sh

.PHONY: clean
clean: ## remove what was built
	rm -rf bin .tools .demo .demo.failed .bench
