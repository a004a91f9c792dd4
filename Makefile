# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test bench faithfulness notebooks docs clean

demo: $(STAMP)  ## photos to input/, explained to output/
	$(BIN)/lrp demo

test: $(STAMP)  ## ruff, mypy, pytest
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(TESTS)

bench: $(STAMP)  ## time and memory against one input gradient, zennit and captum; of evaluating a data set
	$(BIN)/python benchmarks/speed.py $(BENCH)
	$(BIN)/python benchmarks/study.py

faithfulness: $(STAMP)  ## how well the maps of the candidate presets find what the decision hangs on
	$(BIN)/python benchmarks/faithfulness.py

notebooks: $(STAMP)  ## run them offline, and keep their outputs
	$(BIN)/python tools/notebooks.py

docs: $(STAMP)  ## the pages of docs/ as a site in build/docs, warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Installed again only when the dependencies change.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[demo,study,report,train,notebooks,docs,test]'
	touch $(STAMP)

clean:
	rm -rf .venv input output
