# Two commands do everything on a fresh machine: `make demo` and `make test`; `make quick` while you work.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# The lowest versions that pyproject.toml allows: Python 3.11 has packages for all of them.
OLDEST := .venv-oldest
OLDEST_STAMP := $(OLDEST)/.installed
USED := demo,study,report,hf,train,export,notebooks,test
INSTALL := -m pip install --quiet --disable-pip-version-check

.PHONY: demo quick test fuzz bench bench-gpu faithfulness notebooks docs clean
.PHONY: test-oldest constraints dist

demo: $(STAMP)  ## photos to input/, explained to output/
	$(BIN)/lrp demo

quick: $(STAMP)  ## under a minute: ruff and mypy of what changed, the tests marked `core`
	$(BIN)/python tools/changed.py ruff check
	$(BIN)/python tools/changed.py ruff format --check
	$(BIN)/python tools/changed.py mypy
	$(BIN)/python -m pytest -n 2 -m core --durations=0 --durations-min=3 tests/project/test_imports.py tests/engine/test_rules_oracle.py

test: $(STAMP)  ## ruff, mypy, pytest in two processes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile $(TESTS)

fuzz: $(STAMP)  ## ten thousand random nets explained; prints the seeds of those for which something does not hold
	$(BIN)/python tools/fuzz.py $(or $(COUNT),10000)

bench: $(STAMP)  ## speed, memory, errors and growth against one input gradient, into docs/performance.md; of evaluating a data set
	$(BIN)/python benchmarks/speed.py --write $(BENCH)
	$(BIN)/python benchmarks/precision.py --write
	$(BIN)/python benchmarks/onnx_files.py --write
	$(BIN)/python benchmarks/scaling.py --write
	$(BIN)/python benchmarks/study.py

bench-gpu:  ## the same table on a CUDA device, with the torch and torchvision that PYTHON has
	PYTHONPATH=src $(PYTHON) benchmarks/gpu.py --write $(BENCH)

faithfulness: $(STAMP)  ## how well the maps of the candidate presets find what the decision hangs on
	$(BIN)/python benchmarks/faithfulness.py

notebooks: $(STAMP)  ## run them offline, and keep their outputs
	$(BIN)/python tools/notebooks.py

docs: $(STAMP)  ## the pages of docs/ as a site in build/docs, warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test-oldest: $(OLDEST_STAMP)  ## the suite with the lowest versions, but for docs, notebooks and wheel (tests/project)
	$(OLDEST)/bin/python -m pytest $(or $(TESTS),tests --ignore=tests/project)

constraints: $(STAMP)  ## take the newest versions that fit; after `make test` commit what it wrote
	$(BIN)/python $(INSTALL) --upgrade --upgrade-strategy eager -e '.[$(USED),docs]'
	$(BIN)/python tools/constraints.py

dist: $(STAMP)  ## wheel and source archive into dist/
	rm -rf dist
	$(BIN)/hatchling build --directory dist

# Installed again only when the dependencies change.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python $(INSTALL) -c constraints.txt -e '.[$(USED),docs]'
	touch $(STAMP)

$(OLDEST_STAMP): pyproject.toml tools/oldest.py
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python tools/oldest.py > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python $(INSTALL) -c $(OLDEST)/constraints.txt -e '.[$(USED)]'
	touch $(OLDEST_STAMP)

clean:
	rm -rf .venv .venv-oldest build dist input output
