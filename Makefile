# Everything a newcomer needs: `make demo`, then `make test`. Both make the environment that they need, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := demo-output
TASKS := close_box,close_laptop,close_fridge

SAMPLE := tracekit/samples/sample.zarr
SAMPLE_DRIVE := policy
SAMPLE_SEED := 0

.PHONY: demo test test-slow lint types docs bench wheel sample clean
.DEFAULT_GOAL := demo

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "tracekit needs Python 3.11 or newer, and $(PYTHON) is `$(PYTHON) --version`; run: make PYTHON=python3.11 ..."; exit 2; }
	@echo "Creating $(VENV) with the pinned packages (a few minutes, once) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

demo: $(READY)
	@rm -rf $(DEMO)
	$(BIN)/tracekit record sim --task $(TASKS) --episodes 1 --seed 7 --drive policy --out $(DEMO)/trace.zarr
	$(BIN)/tracekit replay $(DEMO)/trace.zarr --config none --config naive-50 --config default --config default-prefix-kv --out $(DEMO)/replay
	$(BIN)/tracekit report masks $(DEMO)/replay --config naive-50 --config default --config default-prefix-kv --out $(DEMO)/masks.png
	@echo
	@echo "The recording is $(DEMO)/trace.zarr, the replays are in $(DEMO)/replay, the picture of the masks is $(DEMO)/masks.png."
	@echo "Next: the five-minute tour in README.md."

test: $(READY)
	$(BIN)/python -m pytest -q -m "not slow" -n 2

test-slow: $(READY)
	$(BIN)/python -m pytest -q -m slow -n 2

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

docs: $(READY)
	$(BIN)/python -m pytest -q tests/docs

wheel: $(READY)
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

# The trace that ships with the package; made anew whenever the packaged policy is another one.
sample: $(READY)
	rm -rf $(SAMPLE)
	$(BIN)/tracekit record sim --task close_box,close_fridge --episodes 1 --seed $(SAMPLE_SEED) --drive $(SAMPLE_DRIVE) \
	  --capture minimal --out $(SAMPLE)
	$(BIN)/tracekit prune-store $(SAMPLE) --drop 'observation/depth/*' --drop 'observation/segmentation/*'
	find $(SAMPLE) -type d -empty -delete
	$(BIN)/tracekit verify $(SAMPLE)

clean:
	rm -rf $(VENV) $(DEMO) build dist .pytest_cache .mypy_cache .ruff_cache
