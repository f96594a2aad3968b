# Every target makes the environment it needs; nothing here needs root.
#
#   PYTHON=python3.12 make demo            another interpreter (3.11 to 3.13)
#   TORCH_INDEX=URL make demo              an index of CPU builds of PyTorch, where plain `torch` would bring gigabytes
#                                          of CUDA; PyTorch's "Start locally" page names it

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH_INDEX ?=

.PHONY: demo up test quick lint bench bench-serving clean help

help:
	@echo 'make demo   the whole loop, on a table and on images: commit, train, gate, promote, change, revert'
	@echo 'make up     the Dagster UI, its daemon, MLflow and the model server, until Ctrl-C'
	@echo 'make test   all tests     make quick   those that take no servers'
	@echo 'make lint   ruff and mypy     make bench   the figures of the README'
	@echo 'make bench-serving   the model server against MLflow and the bare ONNX Runtime, and 1,000 swaps under load'
	@echo 'make clean  remove the environment and caches; your data in .mlops stay'

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo 'Python 3.11 to 3.13 is needed; name one: PYTHON=python3.12 make demo' >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	  || { echo 'no virtual environment can be made; on Debian and Ubuntu install python3-venv' >&2; exit 1; }
	@echo 'installing into $(VENV), a few minutes the first time ...'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/mlops demo

up: $(STAMP)
	@$(BIN)/mlops up

test: $(STAMP)
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

quick: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow'

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m benchmarks

bench-serving: $(STAMP)
	$(BIN)/python -m benchmarks serving swaps

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
