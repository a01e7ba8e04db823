# Every target makes what it needs, from nothing: `make demo` in a fresh clone is enough.

PYTHON ?= python3
READY := .venv/.ready

# Options for llama.cpp's build, such as CMAKE_ARGS="-DGGML_CUDA=on", are remembered until others
# are given (CMAKE_ARGS= for none).
REMEMBERED := $(shell cat .venv/cmake-args 2>/dev/null)
CMAKE_ARGS ?= $(REMEMBERED)
export CMAKE_ARGS

# Those that run without arguments and without torch; they find llama.cpp's tools in the folder
# $$PEERS. In bench/ are more: convert.py needs torch, memory.py much disk, serve.py ten minutes.
BENCHMARKS := bench/quantize.py bench/perplexity.py bench/coverage.py bench/imatrix.py \
              bench/eval.py bench/ledger.py bench/runtime.py bench/prediction.py bench/experts.py \
              bench/quality.py bench/sensitivity.py bench/per_expert.py bench/scale.py

.PHONY: help setup demo test faults lint fuzz bench docs build clean FORCE

help: ## what there is to make
	@sed -n 's/^\([a-z]*\):.* ## \(.*\)/  make \1\t\2/p' Makefile | expand -t 16

setup: $(READY) ## .venv with gemcut, llama.cpp built for this machine, and the developers' tools

demo: $(READY) ## the whole way on the embedded model
	.venv/bin/gemcut demo

# Two processes share the cores: threads that wait for each other must not keep them busy.
test: $(READY) ## the tests
	OMP_WAIT_POLICY=passive .venv/bin/python -m pytest --numprocesses auto --dist loadfile

MINUTES ?= 60
fuzz: $(READY) ## damaged files for every reader, for MINUTES=60; findings in build/fuzz
	.venv/bin/python -m tests.fuzz --minutes $(MINUTES) --processes 2

KILLS ?= 200
faults: $(READY) ## kill, interrupt and starve the commands, KILLS=200 times and more
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive OPENBLAS_NUM_THREADS=1 \
	    .venv/bin/python -m tests.faults --kills $(KILLS)

lint: $(READY) ## formatting, lint and types
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

bench: $(READY) ## compare with llama.cpp's own tools (builds them first); hours
	@PEERS=$$(bench/peers.sh) && export PEERS PYTHONPATH=. RECORD=1 && \
	for script in $(BENCHMARKS) bench/render.py; do \
	    echo "$$script"; .venv/bin/python "$$script" || exit 1; \
	done

docs: $(READY) ## docs/commands.md out of the program
	.venv/bin/python -m gemcut.cli.reference > docs/commands.md

build: $(READY) ## wheel and source distribution in dist/
	rm -rf dist
	.venv/bin/python -m build --outdir dist .

clean: ## remove all that was made here; the cache of built wheels stays
	rm -rf .venv build dist gemcut-demo *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml .ci/engine.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "gemcut needs Python 3.11 or newer, and $(PYTHON) is not: make PYTHON=python3.12"; \
	    exit 1; }
	@rm -f $@
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	.venv/bin/python .ci/engine.py
	@# setuptools warns on every editable install that a folder may shadow the package
	PYTHONWARNINGS=ignore .venv/bin/python -m pip install --quiet --editable '.[serve]' --group dev
	@.venv/bin/gemcut build-experts || echo "  files with types per expert will not run; all else does"
	@printf '%s\n' "$$CMAKE_ARGS" > .venv/cmake-args
	@touch $@

ifneq ($(strip $(CMAKE_ARGS)),$(strip $(REMEMBERED)))
$(READY): FORCE
endif
