# These commands need only Python >= 3.11 (with venv), git and make.
# PYTHON=... chooses the interpreter. ARGS=... is passed to pytest, to the demo or to the bench. WORKERS=... is how many
# tests run at a time. There are more than processors, because most tests wait.

VENV := .venv
DEMO := .venv-demo
BIN := $(VENV)/bin
WORKERS := 6

.PHONY: help demo test check docs site bench simulate venv format clean

help:
	@echo "make demo    pull an image through three mirrors on this machine; no root needed"
	@echo "make test    install what the tests need and run them"
	@echo "make check   lint and type-check"
	@echo "make docs    generate docs/api.md, docs/configuration.md, docs/metrics.md and the dashboard"
	@echo "make site    make a site of docs/ in build/site, and check its links; no network needed"
	@echo "make bench   compare with nginx and docker-registry; ARGS='serve --quick' picks rows"
	@echo "make simulate  simulate pulls of up to 10,000 hosts, for docs/cold-start.md"
	@echo "make venv    create a virtual environment with all tools: $(VENV)"
	@echo "make format  format the code with ruff"
	@echo "make clean   remove what these commands created"

demo:
	@sh scripts/venv $(DEMO) demo
	@$(DEMO)/bin/python -m peili.adapters.standalone demo $(ARGS)

# Bytecode is written whatever the caller has set: each worker imports all tests, and compiling them takes seconds. So
# they are compiled once, while the programs are prepared.
test:
	@sh scripts/venv $(VENV) test
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --collect-only -q $(ARGS) >/dev/null 2>&1 & \
	$(BIN)/python -m tests.prepare; prepared=$$?; wait; exit $$prepared
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: venv
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy
	@$(BIN)/pyright
	@$(BIN)/lint-imports

docs: venv
	@$(BIN)/python -m scripts.api_page
	@$(BIN)/python -m scripts.configuration_page
	@$(BIN)/python -m scripts.metrics_page
	@$(BIN)/python -m scripts.grafana_dashboard

site: venv
	@$(BIN)/python -m scripts.docs_site

bench:
	@sh scripts/venv $(VENV) test
	@$(BIN)/python -m bench.prepare
	@$(BIN)/python -m bench $(ARGS)
	@test -n "$(ARGS)" || $(BIN)/python -m bench fuzz --seconds 30

simulate:
	@sh scripts/venv $(VENV) test
	@$(BIN)/python -m bench.simulation $(ARGS)

format: venv
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format --quiet .

venv:
	@sh scripts/venv $(VENV) dev

clean:
	@rm -rf $(VENV) $(DEMO) build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
