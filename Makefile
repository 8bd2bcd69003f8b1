# The one menu: `make help`. Every target installs what it needs.
SHELL := /bin/sh
PY := .venv/bin/python
export PYTHONPATH := operator:local
export PYTHONDONTWRITEBYTECODE := 1
LOCKS := requirements.lock requirements-dev.lock images/shadow/requirements.lock images/evaluation/requirements.lock

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint audit format unit fuzz apiserver e2e e2e-full e2e-vllm
.PHONY: bench-idle bench-kill bench-chaos bench-router bench-shadow bench-ticks bench-analysis bench-decisions bench-pii crds manifests reference sbom lock up down status

help: ## Show this menu
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Make .venv with the locked dependencies
	@./local/bootstrap.sh

demo: setup ## Bring up a real cluster, promote an fp8 canary, roll back an int8 one (KEEP=1 keeps it)
	@$(PY) -m kvdemo

test: lint unit apiserver e2e ## Everything but real vLLM: lint, unit, component, API server, real node

lint: setup ## ruff, mypy strict, import contracts, generated CRD up to date
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-cache
	$(PY) -m kvquant.api.crd --check

audit: ## Look the locked dependencies up in PyPI's advisories; fails where those are not served
	@python3 -m venv build/audit
	@build/audit/bin/pip install --quiet pip-audit==2.10.1
	build/audit/bin/pip-audit --strict --disable-pip --require-hashes $(LOCKS:%=-r %)

format: setup ## Format the code and mend what ruff can mend
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

unit: setup ## Pure, component and loopback tests (real Envoy and Prometheus included)
	$(PY) -m pytest -m "not apiserver and not node and not vllm"

fuzz: setup ## All properties on examples drawn by chance, the rollout's invariants on EXAMPLES=1500
	EXAMPLES=$(or $(EXAMPLES),1500) $(PY) -m pytest -m "hypothesis and not apiserver" tests

apiserver: setup ## Tests against a real etcd and kube-apiserver
	@$(PY) -m kvlocal build --without-images
	$(PY) -m pytest -m apiserver

e2e: setup ## Rollouts on a real one-node Kubernetes
	@$(PY) -m kvlocal build
	$(PY) -m pytest -m "node and not vllm and not full" tests/e2e

e2e-full: setup ## The same with the faults that take minutes
	@$(PY) -m kvlocal build
	$(PY) -m pytest -m "node and not vllm" tests/e2e

e2e-vllm: setup ## The same with real vLLM on CPU: fp8 promoted, int8 stopped by the regime proof
	@$(PY) -m kvlocal build
	$(PY) -m pytest -m vllm tests/e2e/vllm

bench-idle: setup ## What the operator costs while nothing happens: memory, CPU, API requests
	@$(PY) -m kvlocal build --without-images
	@PYTHONPATH=$(PYTHONPATH):. $(PY) bench/idle.py

bench-kill: setup ## Kill switch to the canary's last request, 20 times on a real node under load
	@$(PY) -m bench.kill

bench-chaos: setup ## Random kills of operator, router, Prometheus and API server (KILLS=200)
	@$(PY) -m bench.chaos --kills $(or $(KILLS),200)

bench-router: setup ## What the router adds to a request, on loopback
	@$(PY) -m bench.router

bench-shadow: setup ## Live p50 and p99 with the shadow at work, dead, hung or flooded (ROUNDS=7 SECONDS=7 RATE=20)
	@PYTHONPATH=$(PYTHONPATH):images/engine-sim $(PY) -m bench.shadow --rounds $(or $(ROUNDS),7) --seconds $(or $(SECONDS),7) --rate $(or $(RATE),20)

bench-ticks: setup ## What one tick of up to 1,000 rollouts costs: queries, bytes, seconds, memory
	@PYTHONPATH=$(PYTHONPATH):. $(PY) -m bench.ticks

bench-analysis: setup ## What judging 1,000 rollouts costs for one tick on one core (limit 1 s)
	@PYTHONPATH=$(PYTHONPATH):. $(PY) -m bench.analysis

bench-decisions: setup ## Our verdicts beside Flagger's, Argo's and Kayenta's, simulated (RUNS=100 SEED=1000)
	@$(PY) -m bench.decisions --runs $(or $(RUNS),100) --seed $(or $(SEED),1000)

bench-pii: setup ## Recall, precision and speed of the search for personal data (TEXTS=1200 SEED=1000)
	@PYTHONPATH=$(PYTHONPATH):. $(PY) -m bench.pii --texts $(or $(TEXTS),1200) --seed $(or $(SEED),1000)

manifests: setup ## Generate examples/install/operator.yaml and the README of the chart from the chart
	@$(PY) -m kvlocal.chart

sbom: setup ## Build the images, and write an SPDX document and a provenance for each to build/sbom
	@$(PY) -m kvlocal sbom

reference: setup ## Generate docs/reference and docs/cli.md from the code
	@$(PY) -m kvlocal.reference
	@$(PY) -m kvquant.cli.reference > docs/cli.md

crds: setup ## Generate crds/ from the models, for the chart as well
	$(PY) -m kvquant.api.crd

lock: setup ## Pin the dependencies anew, by hash
	.venv/bin/python -m pip install --quiet uv
	.venv/bin/uv pip compile pyproject.toml --generate-hashes --no-header --no-annotate --python-version 3.11 --upgrade -q -o requirements.lock
	.venv/bin/uv pip compile pyproject.toml --extra shadow --group dev --generate-hashes --no-header --no-annotate --python-version 3.11 -c requirements.lock -q -o requirements-dev.lock
	.venv/bin/uv pip compile images/shadow/requirements.in --generate-hashes --no-header --no-annotate --python-version 3.11 -c requirements-dev.lock -q -o images/shadow/requirements.lock
	.venv/bin/uv pip compile images/evaluation/requirements.in --generate-hashes --no-header --no-annotate --python-version 3.11 -c requirements-dev.lock -q -o images/evaluation/requirements.lock

up: setup ## Bring up a one-node Kubernetes named dev, with Prometheus
	@$(PY) -m kvlocal up --name dev --with-prometheus

down: setup ## Take it down
	@$(PY) -m kvlocal down --name dev

status: setup ## Tell what runs
	@$(PY) -m kvlocal status
