# fedgraft: `make demo` first, then `make help`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
export FLWR_TELEMETRY_ENABLED = 0

.PHONY: help install demo test e2e quick gpu exhaustive bench study docs check format clean

help: ## what can be made
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# what a run says at its end: the tests that took longest, seconds
SLOWEST := --durations 40 --durations-min 5
# several processes: a file's tests stay together, and all federations (tests/order_of_files.py)
TOGETHER := --dist loadscope

install: $(STAMP) ## make .venv and install into it (about two minutes, 6.5 GB, most of it torch)

demo: $(STAMP) ## pre-train on digits 0-4, hand out, adapt to digits 5-9 at five nodes; about a minute
	@$(BIN)/fedgraft pretrain digits
	@$(BIN)/fedgraft simulate digits --seeds 3 --baselines alone,head,random-backbone

test: $(STAMP) ## every test, in three processes: one begins with federations, which mostly wait
	$(BIN)/python -m pytest $(SLOWEST) $(TOGETHER) -n 3

quick: $(STAMP) ## the quick tests
	$(BIN)/python -m pytest -n 2 $(TOGETHER) -m 'not slow and not exhaustive'

e2e: $(STAMP) ## federations of real processes: TLS, strangers, kills, a cut cable; the same bits as in one process
	@PATH="$$PATH:/usr/sbin"; command -v nginx >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
	    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq nginx-light >/dev/null; } || \
	  echo "nginx is not here and cannot be installed: the tests of its configuration are skipped"
	$(BIN)/python -m pytest -v -n 2 $(TOGETHER) -m 'deployment and not exhaustive'

gpu: $(STAMP) ## on a machine with a card: what it computes is what the processor computes; and how fast
	$(BIN)/python -m pytest -v -m gpu
	$(BIN)/python -m fedgraft.simulations.benchmarks.cards

exhaustive: $(STAMP) ## the long versions of the numerical checks, about half an hour
	$(BIN)/python -m pytest -m exhaustive

bench: $(STAMP) ## fedgraft beside Flower, pfl, NVIDIA FLARE and plain PyTorch, into docs/results.md; about an hour
	$(BIN)/python -m fedgraft.simulations.benchmarks.environments
	$(BIN)/python -m fedgraft.simulations.benchmarks.peers
	$(BIN)/python -m fedgraft.simulations.benchmarks.results_page

study: $(STAMP) ## what privacy costs and what leaks, on real chest X-rays: two studies and their pages, ten minutes
	@$(BIN)/fedgraft study utility-vs-epsilon
	@$(BIN)/fedgraft study membership

docs: $(STAMP) ## the documentation site, into build/site; it needs no network to be read
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "build/site/index.html"

check: $(STAMP) ## style, types, the law of imports, declared dependencies, the documentation
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyright
	$(BIN)/deptry .
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(STAMP) ## put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove what was built (runs/ stays)
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis
