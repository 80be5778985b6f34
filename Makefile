# DEFIANCE on a bare clone: needs python3 (3.11 or newer) with pip, make and gcc; everything else goes to .venv.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-deploy check bench calibration ns3 bler walks weights readme clean
.DELETE_ON_ERROR:

PYTHON ?= python3
BIN    := .venv/bin
STAMP  := .venv/.installed

help:  ## this list
	@echo "DEFIANCE: is AI in a cellular network worth its cost?"
	@sed -n 's/^\([a-z/A-Z%-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | sed 's/%/NAME/' | \
	  awk -F'|' '{ printf "%-22s %s\n", $$1, $$2 }'

setup: $(STAMP)  ## install everything into .venv, once

# Every version, torch's CPU build included, is pinned in constraints.txt; without it pip would fetch several GB.
# `pip --python` installs into .venv from outside, so Debian's python3-venv (ensurepip) is not needed.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "setup: $(PYTHON) is missing or older than 3.11; name another one: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m pip --version >/dev/null 2>&1 || \
	  { echo "setup: $(PYTHON) has no pip; install it (Debian: apt-get install python3-pip)" >&2; exit 1; }
	@echo "setup: installing into .venv, once (a few minutes)"
	@$(BIN)/python -c 'import ssl' 2>/dev/null || $(PYTHON) -m venv --clear --without-pip .venv
	@$(PYTHON) -m pip --python $(BIN)/python install -qq --constraint constraints.txt --editable '.[dev,flower,mlflow,onnx,ray,rl]'
	@touch $@

demo: $(STAMP)  ## run the study `worth` with few seeds, print its verdict, write out/worth/report.html
	$(BIN)/defiance demo

test: $(STAMP)  ## run the tests
	$(BIN)/python -m pytest

test-deploy: $(STAMP)  ## kill the processes of Flower deployments one by one (10 minutes)
	$(BIN)/python -m pytest -m deploy tests/test_deploy.py

check: $(STAMP)  ## formatting, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)  ## compare with peers in environments of their own, write results/benchmarks.json
	$(BIN)/python -m benchmarks.compare

calibration: $(STAMP)  ## hold the engine against R1-165974, write the table and docs/calibration.png
	$(BIN)/python -m benchmarks.calibration

results/%: $(STAMP)  ## run the study NAME with all its seeds and write its sheet results/NAME.json
	$(BIN)/defiance run $* --preset full --out out/$*-full
	cp out/$*-full/sheet.json $@.json

ns3: $(STAMP)  ## hold event A3 against ns-3, write results/ns3_a3.json
	$(BIN)/python -m benchmarks.ns3_a3 --out results/ns3_a3.json

bler: $(STAMP)  ## fit the error rates of NR's codes to Sionna's tables: defiance/radio/data/bler.csv
	$(BIN)/python -m benchmarks.bler_fit

weights: $(STAMP)  ## pack the weights that the quick preset of `coinference` takes from its finished full runs
	$(BIN)/python -m defiance.studies.coinference.shipped $(wildcard out/coinference-*)

walks: $(STAMP)  ## trace the propagation paths along the walks that ship (ten minutes, extra `rt`)
	$(BIN)/defiance trace-paths munich --out defiance/scene/data/walks/munich.npz
	$(BIN)/defiance trace-paths florence --out defiance/scene/data/walks/florence.npz

readme: $(STAMP)  ## write what results/worth.json says into README.md and docs/
	$(BIN)/python docs/refresh.py

clean:  ## remove what was made, .venv too
	rm -rf .venv .venv-peers out build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
