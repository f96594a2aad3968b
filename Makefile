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

.PHONY: demo up test quick lint bench bench-serving docs clean help

help:
	@echo 'make demo   the whole loop, on a table and on images: commit, train, gate, promote, change, revert'
	@echo 'make up     the Dagster UI, its daemon, MLflow and the model server, until Ctrl-C'
	@echo 'make test   all tests     make quick   those that take no servers'
	@echo 'make lint   ruff and mypy     make bench   the figures of the README'
	@echo 'make bench-serving   the model server against MLflow and the bare ONNX Runtime, and 1,000 swaps under load'
	@echo 'make docs   the documentation as a site, in build/site'
	@echo 'make server the whole on one server with Docker     make docker-test   build, use, kill and restore it'
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

validate: $(STAMP)
	$(BIN)/dg check yaml
	$(BIN)/dg check defs
	$(BIN)/dagster definitions validate -w workspace.yaml

# What the workflows of .github/workflows run, see docs/operations/cicd.md. PIPELINE and VERSION reach the commands
# through the environment, never through make's own expansion: whoever sends them writes no shell.
#
#   RUN=PREFIX         where the home of the champions is: RUN='docker/server exec -T code' on the server
#   MLOPS_IMAGES=NAME  the images are NAME-ROLE:MLOPS_TAG, as in docker/compose.yaml; PUSH=1 pushes them
RUN ?= env PATH="$(abspath $(BIN)):$$PATH"
STAMPED = $(if $(filter env,$(firstword $(RUN))),$(STAMP))
REPORTS := build/reports

.PHONY: validate ci-train ci-promote ci-deploy ci-report ci-comment ci-images

ci-train: $(STAMPED)
	@eval "$$($(RUN) mlops env)"; failed=; names=$${PIPELINE:-$$($(RUN) mlops stale)} || exit; \
	for name in $$names; do \
	  $(RUN) dagster job execute -m mlops_assets.definitions -j "$${name}_job" || failed="$$failed $$name"; \
	done; \
	echo "trained: $${names:-nothing, since nothing is stale}"; \
	test -z "$$failed" || { echo "failed:$$failed" >&2; exit 1; }

ci-promote: $(STAMPED)
	@$(RUN) mlops judge -- "$$PIPELINE" "$$VERSION"

ci-deploy:
	@case "$$PIPELINE" in *[!a-z0-9_]*) echo 'PIPELINE is no name of a pipeline' >&2; exit 1;; esac
	@case "$$MLOPS_DEFS" in /*) ;; *) echo "MLOPS_DEFS must be the path of the server's own pipelines, or this checkout's \
	would become them" >&2; exit 1;; esac
	$(SERVER) pull
	$(SERVER) up --detach --no-build --wait
	@test -z "$$PIPELINE" || $(SERVER) exec -T code \
	  dagster asset materialize -m mlops_assets.definitions --select "$$PIPELINE/deployment"

ci-report: $(STAMP)
	@rm -rf $(REPORTS)
	@$(BIN)/mlops trial --output $(REPORTS) -- $${PIPELINE:-iris digits}

ci-comment:
	@$(PYTHON) .github/comment.py $(REPORTS)

ci-images: server-images

bench: $(STAMP)
	$(BIN)/python -m benchmarks

bench-serving: $(STAMP)
	$(BIN)/python -m benchmarks serving swaps

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -f docs/site/mkdocs.yml -d $(CURDIR)/build/site

# --- one server, with Docker (docs/operations/server.md)
.PHONY: server server-images server-stop docker-test
DOCKER ?= docker
MLOPS_BUILD_NETWORK ?= default
TARGETS := nginx dagster mlflow models code playground
SERVER = DOCKER=$(DOCKER) docker/server

server-images:
	@set -e; for role in $(TARGETS); do image="$${MLOPS_IMAGES:-mlops}-$$role:$${MLOPS_TAG:-latest}"; \
	  echo "building $$image ..."; \
	  DOCKER_BUILDKIT=1 $(DOCKER) $(if $(PUSH),buildx build --push --provenance mode=max --sbom true,build --quiet) \
	    --network $(MLOPS_BUILD_NETWORK) --file docker/Dockerfile --target "$$role" --tag "$$image" \
	    --build-arg TORCH_INDEX="$$TORCH_INDEX" --build-arg TORCH="$${TORCH:-cpu}" \
	    --build-arg REVISION="$$(git rev-parse HEAD 2>/dev/null)" \
	    --label "org.opencontainers.image.source=$$SOURCE" . ; \
	done

server: server-images
	@mkdir -p docker/exchange && chmod 1777 docker/exchange
	$(SERVER) up --detach --no-build
	@echo "$${MLOPS_PUBLIC_URL:-https://localhost:8443}, user admin; the first start made its password:"
	@echo '  docker/server exec nginx cat /etc/mlops/web/first-password'

server-stop:
	$(SERVER) down

docker-test:
	DOCKER=$(DOCKER) MLOPS_BUILD_NETWORK=$(MLOPS_BUILD_NETWORK) TORCH_INDEX=$(TORCH_INDEX) $(PYTHON) docker/acceptance

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
