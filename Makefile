# Everything a person or CI runs. Each target makes the virtual environment first if it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Which model `make benchmark` runs.
MODEL := bundled
# A few corruptions of each kind, where all fifteen would take an hour.
SOME := gaussian_noise,defocus_blur,fog,contrast,pixelate,jpeg_compression

.PHONY: install demo test check tables small-batches benchmark cost beside monitoring picture clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(INSTALLED)  ## serve the bundled model, replay a corrupted stream for SOURCE and TTC
	$(BIN)/ttc demo

test: $(INSTALLED)  ## all tests, the slow ones too
	$(BIN)/python -m pytest

check: $(INSTALLED)  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

tables: $(INSTALLED)  ## the README's table, on the bundled stream
	$(BIN)/ttc evaluate bundled --preset table2 --json results/bundled.jsonl
	$(BIN)/ttc report results/bundled.jsonl --out results/report

small-batches: $(INSTALLED)  ## single images one after another against batches of 100
	for size in 1 100; do $(BIN)/ttc evaluate bundled --served --methods ttc --batch-size $$size \
	  --corruptions $(SOME) --json results/small-batches.jsonl; done
	$(BIN)/ttc evaluate bundled --methods source,norm,ttc --corruptions $(SOME) --json results/paper.jsonl
	$(BIN)/ttc report results/small-batches.jsonl --out results/small-batches
	$(BIN)/ttc report results/paper.jsonl --out results/paper

benchmark: $(INSTALLED)  ## images a second beside a bare loop, offline and over HTTP
	$(BIN)/python -m benchmarks.throughput --model $(MODEL)

cost: $(INSTALLED)  ## what each method costs, as a multiple of SOURCE
	$(BIN)/python -m benchmarks.cost --model $(MODEL)

beside: $(INSTALLED)  ## a lone camera's latency beside a client that sends large requests without end
	$(BIN)/python -m benchmarks.beside

monitoring: $(INSTALLED)  ## the dashboard and the rules, from the metrics
	$(BIN)/python -m monitoring.generate

picture: $(INSTALLED)  ## docs/dashboard.png, over a real replay; needs Debian's prometheus
	$(BIN)/python -m monitoring.picture

clean:
	rm -rf $(VENV) results
