# Remontoir: the same words for a newcomer, a developer and CI. `make` alone lists them.
#
#   PYTHON   the interpreter the virtual environment is made with (3.11 or newer)
#   PYTHON310  one of Python 3.10, for make e2e-python310 only
#   VENV     where the environment lives
#   MODELS   the model repository that `make serve` fills with the demo models and serves
#   HOST     the gateway that `make locust` loads
#   ARGS     passed on: make serve ARGS="--port 9000", make test ARGS="-k wire", make bench ARGS=...

PYTHON ?= python3
PYTHON310 ?= python3.10
VENV   ?= .venv
MODELS ?= demo-models
ARGS   ?=
HOST   ?= http://127.0.0.1:8000

BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip --disable-pip-version-check
RUNTIME := $(VENV)/.installed-runtime
DEV     := $(VENV)/.installed-dev
COMPILE := uv pip compile --quiet --generate-hashes --no-emit-index-url --no-header
LOCK311 := $(COMPILE) --universal --python-version 3.11

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install serve test check format bench locust peers lock-peers experiments gpu-check gpu-packages cuda-packages lock e2e-wheel e2e-python310 e2e-tensorrt-rtx e2e-v2 e2e-otel e2e-http e2e-ui e2e-prometheus e2e-net e2e-envoy e2e-postgresql e2e-image helm-e2e vendor-ui clean distclean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(RUNTIME) ## make the environment in .venv, from hash-locked requirements

serve: $(RUNTIME) ## fetch the demo models, compile them once, serve them on http://127.0.0.1:8000
	@$(BIN)/remontoir fetch --into $(MODELS)
	@$(BIN)/remontoir serve --models $(MODELS) $(ARGS)

# The scheduler's own tests come first, and must reach every branch of it.
PURE_TESTS := tests/scheduler tests/scenarios

test: $(DEV) ## run all tests: CPU only, no root, no network (ARGS="-k name" to choose)
ifeq ($(strip $(ARGS)),)
	@$(BIN)/python -m coverage run -m pytest -q $(PURE_TESTS)
	@$(BIN)/python -m coverage report --skip-covered --fail-under=100
	@$(BIN)/python -m pytest $(PURE_TESTS:%=--ignore=%)
else
	@$(BIN)/python -m pytest $(ARGS)
endif

cuda-packages: $(DEV) ## build what the GPU worker's tests need, without a GPU (two minutes, network)
	@$(BIN)/python tests/standin/install_cuda_packages.py

gpu-packages: $(RUNTIME) ## install what serving on this machine's NVIDIA GPUs needs (ARGS=--print; docs/gpu.md)
	@$(BIN)/python -m gpuworker.gpu_packages $(ARGS)

check: $(DEV) ## format, lint and types: ruff, mypy --strict, nothing newer than Python 3.10 in a worker
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy --strict
	@$(BIN)/vermin --quiet --no-tips --eval-annotations --violations -t=3.10- scheduler gpuworker

format: $(DEV) ## let ruff format the code and fix what it can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(DEV) ## measure: overload, gateway cost, paging, scheduler (ARGS=--help lists them)
	@$(BIN)/python -m loadtest $(ARGS)

locust: $(DEV) ## load a running gateway (make serve) by Locust for 30 s (HOST=http://..., ARGS="--shape trace"; docs/locust.md)
	@$(BIN)/remontoir locust --headless --only-summary --host $(HOST) -u 20 -t 30s $(ARGS)

peers: $(DEV) ## measure other servers beside ours, write docs/measurements/peers.md (an hour, network; ARGS=--quick: minutes)
	@$(BIN)/remontoir bench peers $(ARGS)

experiments: $(DEV) ## play the papers' experiments in virtual time, write docs/measurements/scheduler.md
	@$(BIN)/python -m loadtest.experiments $(ARGS)

gpu-check: $(RUNTIME) ## measure what an NVIDIA GPU does with this, bar by bar (ARGS=--quick; docs/gpu.md)
	@$(BIN)/remontoir gpu-check $(ARGS)

e2e-wheel: ## build, install and test both wheels, compiled and pure (minutes, network)
	@$(PYTHON) tests/e2e/wheel.py

e2e-python310: $(DEV) ## scheduler and worker under Python 3.10 (PYTHON310=..., minutes, network)
	@$(BIN)/python tests/e2e/python310.py $(PYTHON310)

e2e-tensorrt-rtx: $(DEV) ## plans built by a real TensorRT builder, on the CPU (two minutes, network)
	@$(BIN)/python tests/e2e/tensorrt_rtx.py

e2e-v2: $(DEV) ## KServe's client, mlserver infer and perf_analyzer against a real server (minutes, network)
	@$(BIN)/python tests/e2e/v2_clients.py

e2e-prometheus: $(DEV) ## alert rules and dashboards on a real Prometheus, gateway under load (two minutes, network)
	@$(BIN)/python tests/e2e/prometheus.py

e2e-net: $(DEV) ## gateway and three workers on four hosts: delay, loss, a partition, a killed worker (root, two minutes)
	@$(BIN)/python tests/e2e/net.py

e2e-postgresql: $(DEV) ## results and queue of `remontoir bench` in a real PostgreSQL (Debian: root the first time; two minutes, network)
	@$(BIN)/python tests/e2e/postgresql.py

e2e-envoy: $(DEV) ## a real Envoy that sends requests to the owner of their model (two minutes, network)
	@$(BIN)/python tests/e2e/envoy.py

e2e-image: $(DEV) ## build the container image on Debian's packages and run it (root, Debian, five minutes, network)
	@$(BIN)/python tests/e2e/image.py

helm-e2e: $(DEV) ## the chart: lint, schemas, and a real API server (Debian; ten minutes first, then two; network)
	@$(BIN)/python tests/e2e/helm.py

e2e-http: $(DEV) ## openapi.yaml by spectral, schemathesis and a generated client (minutes, network)
	@$(BIN)/python tests/e2e/http_contract.py

e2e-ui: $(DEV) ## the live page in headless Chromium, under load (three minutes, network, ARGS=--pictures DIR)
	@$(BIN)/python tests/e2e/ui.py $(ARGS)

# What the live page draws charts with, as it is published; committed, so that nobody needs npm.
UPLOT := uplot@1.6.32
vendor-ui: ## renew the chart library of the live page (needs npm, network)
	@set -e; tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	npm pack --silent --pack-destination "$$tmp" $(UPLOT) >/dev/null; \
	tar -xzf "$$tmp"/uplot-*.tgz -C "$$tmp"; \
	cp "$$tmp"/package/dist/uPlot.iife.min.js "$$tmp"/package/dist/uPlot.min.css gateway/ui/; \
	cp "$$tmp"/package/LICENSE gateway/ui/uPlot.LICENSE; \
	echo "$(UPLOT) is in gateway/ui"

e2e-otel: $(DEV) ## traces through a real OpenTelemetry collector (a minute, network)
	@$(BIN)/python tests/e2e/otel.py

lock: ## renew requirements*.txt after a change of pyproject.toml (needs uv; ARGS=--upgrade for newer)
	$(LOCK311) $(ARGS) --extra build pyproject.toml -o requirements.txt
	$(LOCK311) $(ARGS) --extra build --extra dev -c requirements.txt pyproject.toml \
	    -o requirements-dev.txt
	$(LOCK311) $(ARGS) --extra otel -c requirements-dev.txt pyproject.toml \
	    -o requirements-image.txt
	$(LOCK311) $(ARGS) --group compile -c requirements-dev.txt -o requirements-compile.txt
	$(LOCK311) $(ARGS) --group gpu-image -c requirements-dev.txt -c requirements-cuda-tests.txt \
	    -o requirements-gpu-image.txt
	$(COMPILE) $(ARGS) --universal --python-version 3.10 --group cuda-tests \
	    -c requirements-dev.txt -o requirements-cuda-tests.txt
	$(COMPILE) $(ARGS) --python-platform linux --python-version 3.10 --group python310 \
	    -o requirements-python310.txt

# Triton's wheel wants a newer C library than uv supposes; Debian 12 has it.
PEERS := loadtest/peers/requirements
lock-peers: ## renew the peers' locks after a change of their .in files (needs uv; ARGS=--upgrade for newer)
	@set -e; for file in $(PEERS)/*.in; do \
	    echo "$$file"; \
	    $(COMPILE) $(ARGS) --python-version 3.11 --python-platform x86_64-manylinux_2_36 \
	        "$$file" -o "$${file%.in}.txt"; \
	done

clean: ## remove caches and build outputs
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .schemathesis .coverage
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove the environment, the demo models and bench-results as well
	@rm -rf $(VENV) demo-models bench-results

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "make: Python 3.11 or newer is needed, $(PYTHON) is not (make PYTHON=python3.12 ...)" >&2; \
	    exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "make: $(PYTHON) cannot make virtual environments (Debian: apt install python3-venv)" >&2; \
	    exit 1; }
	@$(PYTHON) -m venv $(VENV)

# The stamps make a second call instant; a newer lock file or pyproject.toml makes them stale.
$(RUNTIME): requirements.txt pyproject.toml | $(BIN)/python
	@echo "Installing Remontoir into $(VENV) ..."
	@$(PIP) install --require-hashes -r requirements.txt
	@$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(DEV): requirements-dev.txt requirements.txt pyproject.toml | $(BIN)/python
	@echo "Installing Remontoir and its development tools into $(VENV) ..."
	@$(PIP) install --require-hashes -r requirements-dev.txt
	@$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $(RUNTIME) $@
