# Every target sets up its own .venv when it is not there. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | \
	  while IFS=$$'\t' read -r name text; do fold -s -w 62 <<< "$$text" | \
	    while IFS= read -r line; do printf '%-16s %s\n' "$$name" "$${line% }"; name=; done; done

$(VENV)/.users: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e '.[sweep,report]'
	@touch $@

$(VENV)/.developers: $(VENV)/.users
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

EXTRAS ?=
install: $(VENV)/.users  ## Install gvc and grouped_lm into .venv; EXTRAS=ray,judge adds extras
	$(if $(EXTRAS),$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]')

demo: $(VENV)/.users  ## Train dense, the paper's head and the default head on generated stories, and compare them
	$(BIN)/gvc demo $(ARGS)

EXAMPLE := runs/example
example: $(VENV)/.users  ## Train the two models of `gvc sample --example`, and put them into the package
	$(BIN)/gvc train experiment=example hydra.run.dir=$(EXAMPLE)/shortlist
	$(BIN)/gvc train experiment=example head=dense head.bias=true head.start=counts hydra.run.dir=$(EXAMPLE)/dense
	$(BIN)/python .ci/pack-example $(EXAMPLE)/shortlist $(EXAMPLE)/dense

SCALE ?= smoke
DATA ?=
reproduce-paper: $(VENV)/.users  ## Check the paper's claims: SCALE=smoke|cpu|cpu-long|paper DATA="tinystories=DIR DIR"
	$(BIN)/gvc reproduce --scale $(SCALE) $(foreach text,$(DATA),--data $(text)) $(ARGS)

train: $(VENV)/.users  ## Run `gvc train`; ARGS="head=dense train.max_steps=100" adds overrides
	$(BIN)/gvc train $(ARGS)

test-fast: check  ## Lint and run the unit tests, in two minutes on two cores
	$(BIN)/pytest -n 2 --dist worksteal tests/unit $(ARGS)

test: $(VENV)/.developers  ## Run the tests (no network needed)
	$(BIN)/pytest -n 2 --dist worksteal $(ARGS)

golden: $(VENV)/.developers  ## Compare 20 steps of every head with the reference, bit for bit (on its own kind of CPU)
	GVC_GOLDEN_EXACT=1 $(BIN)/pytest tests/integration/test_golden.py $(ARGS)

test-long: $(VENV)/.developers  ## Run the tests that take minutes each: sweeps killed again and again
	$(BIN)/pytest -m long $(ARGS)

test-kernels: $(VENV)/.developers  ## Run all tests of the kernels, and compile them for every kind of GPU, in 15 minutes on a CPU
	$(BIN)/pytest -m '' tests/unit/heads/test_kernels.py $(ARGS)

$(VENV)/.bench: $(VENV)/.users
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@touch $@

SUITES := heads steps memory decode vocab
bench: $(VENV)/.bench  ## Measure all heads on the quick grid into runs/results
	@for suite in $(SUITES); do $(BIN)/gvc bench $$suite --grid quick --out runs/results $(ARGS); done

$(VENV)/.gpu: $(VENV)/.developers
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[gpu]'
	@touch $@

check-gpu: $(VENV)/.developers  ## On a CUDA device, in two minutes: tests of the kernels, runs beside the CPU's, captured steps
	@$(BIN)/gvc doctor --gpu
	$(BIN)/pytest tests/unit/heads/test_kernels.py tests/integration/test_gpu.py $(ARGS)

bench-gpu: $(VENV)/.users  ## Check and time heads, kernels and peers on a CUDA device, in bf16, into runs/results, in 8 minutes
	@$(BIN)/gvc doctor --gpu
	@$(MAKE) --no-print-directory $(VENV)/.gpu
	@for suite in heads steps; do $(BIN)/gvc bench $$suite --grid gpu --out runs/results $(ARGS); done

bench-full: $(VENV)/.bench  ## The same on the full grid; after a stop, the same command continues
	@for suite in $(SUITES); do $(BIN)/gvc bench $$suite --grid full --out runs/results $(ARGS); done

test-faults: $(VENV)/.developers  ## Run all faults and print the table of promises; TRIAL=kill-dense:123 repeats one trial, SEED=1 sets the first seed
	FAULT_TRIAL='$(TRIAL)' FAULT_SEED=$(or $(SEED),$(shell date +%s)) $(BIN)/pytest -m '' -n 2 --dist worksteal $(ARGS) \
	  tests/faults tests/integration/test_sweep.py::test_a_driver_killed_again_and_again_completes_every_job_once \
	  tests/integration/test_sweep.py::test_diverging_starved_and_killed_jobs_in_one_sweep_are_named_and_run_again

test-slurm: $(VENV)/.developers  ## Run the guide's SLURM lines on a real controller with two nodes (root, Debian; installs slurm-wlm)
	@$(BIN)/python tests/engines/on_slurm.py $(ARGS)

test-ray: $(VENV)/.developers  ## Run the guide's Ray lines on two raylets, and lose one of them (root, Linux)
	@$(BIN)/python tests/engines/on_ray.py $(ARGS)

test-torchrun: $(VENV)/.developers  ## Run the guide's torchrun line on two machines made of namespaces (root, Linux)
	@$(BIN)/python tests/engines/on_torchrun.py $(ARGS)

test-shared: $(VENV)/.developers  ## Let two machines meet in a folder that hides their locks from each other (root, Linux, FUSE)
	@$(BIN)/python tests/engines/on_shared_folders.py $(ARGS)

$(VENV)/.docs: $(VENV)/.users
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

docs: $(VENV)/.docs  ## Compute the generated tables, and build the documentation into site/ (no network needed)
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/pictures.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(VENV)/.release: $(VENV)/.users
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[release]'
	@touch $@

release-check: $(VENV)/.release  ## Build sdist and wheel, and use the wheel in an empty environment (needs an index)
	.ci/release-check

coverage: $(VENV)/.developers  ## Run the tests and report which lines they run; ARGS=tests/unit for a part
	$(BIN)/pytest -n 2 --dist worksteal --cov --cov-report=term:skip-covered --cov-report=html:htmlcov $(ARGS)

format: $(VENV)/.developers  ## Format the code and fix what the linter can fix
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

check: $(VENV)/.developers  ## Check format, lint, spelling, types and the layers of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell grouped_lm cli conf docs *.md Makefile pyproject.toml .ci
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports

clean:  ## Remove .venv and build leftovers; runs/ and the cache stay
	rm -rf $(VENV) build dist site htmlcov .coverage* *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -not -path './runs/*' -exec rm -rf {} +

.PHONY: help install demo example docs release-check reproduce-paper train test-fast test golden coverage format test-long test-kernels test-faults test-slurm test-ray test-torchrun test-shared bench bench-full bench-gpu check-gpu check clean
