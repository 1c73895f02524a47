# Everything a person or CI runs. Each target makes the virtual environment first if it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Which model `make cost` runs.
MODEL := bundled
# More of `python -m benchmarks.bench`, and of the comparison: --rounds N, --only NAME, …
BENCH =
PEERS =
# A few corruptions of each kind, where all fifteen would take an hour.
SOME := gaussian_noise,defocus_blur,fog,contrast,pixelate,jpeg_compression

# What the studies run on: what the default was chosen on, or what only reports it (reporting).
NETWORKS := tuning
# More of `python -m benchmarks.study`: --only NAME, --minutes M, --seeds 0,1, --images N, …
STUDY =
STUDIED := $(VENV)/.studied $(if $(filter reporting,$(NETWORKS)),results/cifar10-network.pt)

# On CI's Python the very files that CI has; elsewhere what pyproject.toml allows.
LOCK := $(shell $(PYTHON) -c 'import sys; \
  print("locks/dev.txt" if (sys.platform, *sys.version_info[:2]) == ("linux", 3, 11) else "")')
# The lowest versions that pyproject.toml allows, and the quick tests of what touches the libraries.
LOWEST := $(VENV)-lowest
KSERVE := $(VENV)-kserve
TOUCHING := $(addprefix tests/,e2e/test_walk.py e2e/test_http.py \
  $(addprefix service/test_,client.py client_events.py engine.py errors.py exchange.py images.py \
  live_assets.py live_frames.py live_readers.py logs.py metrics.py saved_streams.py saving.py \
  schemas.py serve.py settings.py settings_file.py tracing.py upload_readers.py upload_values.py \
  uploads.py v2_reading.py v2_writing.py) \
  $(addprefix ttc_core/test_,checkpoints.py learning.py load.py model.py \
  networks_of_ones_own.py normalization.py pictures.py plugins.py report.py shared_layers.py state.py))

.PHONY: install demo test stack replicas test-lowest check lock tables small-batches streams harm estimate study ablation sensitivity bench gpu \
  bench-peers cost saving queue shared beside monitoring picture screenshots \
  clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml $(LOCK)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(if $(LOCK),$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --requirement $(LOCK))
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[dev]'
	touch $@

demo: $(INSTALLED)  ## SOURCE, TTC and the default over HTTP, shuffled and in a camera's order
	$(BIN)/ttc demo

# More of pytest: -m 'not slow', a folder, …
TESTS =
# Each worker takes the next file; the last files are short ones. One thread each, since those of
# OpenMP spin while they wait.
WORKERS := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# The stack has the ports of the compose file to itself, and waits for an alert; replicas under fire
# take ten minutes of a machine that does nothing else: targets of their own.
APART := tests/docker/test_stack.py tests/e2e/test_replicas_under_fire.py
test: $(INSTALLED) $(KSERVE)/.installed  ## all tests, the slow ones too; but for those of stack and replicas
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS) $(addprefix --ignore=,$(APART)) $(TESTS)

replicas: $(INSTALLED)  ## ten replicas killed under fifty streams, and from one to three and back: ten minutes
	$(BIN)/python -m pytest -s tests/e2e/test_replicas_under_fire.py

stack: $(INSTALLED)  ## docker-compose.yml brought up with podman, as root: five minutes
	$(BIN)/python -m pytest tests/docker/test_stack.py

# KServe's client, whose packages do not go beside ours.
$(KSERVE)/.installed: locks/kserve.txt $(INSTALLED)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(KSERVE)
	$(BIN)/uv pip install --quiet --python $(KSERVE) --require-hashes --requirement $<
	touch $@

COMPILE_ONE = $(BIN)/uv pip compile --quiet --generate-hashes --python-version 3.11 \
  --python-platform x86_64-manylinux_2_28 --custom-compile-command 'make lock'
COMPILE = $(COMPILE_ONE) pyproject.toml
# What comes from PyTorch's own index when it is to do without CUDA.
OF_TORCH := 's/^((torch|triton|cuda|nvidia)[a-z0-9-]*)==.*/--no-emit-package \1/p'

lock: $(INSTALLED)  ## exact versions for CI and image; those that fit stay, UPGRADE=--upgrade moves all
	$(COMPILE) $(UPGRADE) --all-extras --output-file locks/dev.txt
	$(COMPILE) --constraint locks/dev.txt --output-file locks/cuda.txt
	$(COMPILE) --constraint locks/dev.txt --output-file locks/cpu.txt \
	  $$(sed -nE $(OF_TORCH) locks/cuda.txt)
	echo 'kserve>=0.21 pillow>=11' | tr ' ' '\n' | $(COMPILE_ONE) $(UPGRADE) - --output-file locks/kserve.txt

# The deprecations of old releases are nobody's to mend.
test-lowest: $(INSTALLED)  ## quick tests with the lowest versions that pyproject.toml allows
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(LOWEST)
	$(BIN)/uv pip install --quiet --python $(LOWEST) --resolution lowest-direct --editable '.[dev]'
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest $(WORKERS) -m 'not slow' \
	  --override-ini filterwarnings= $(TOUCHING)

# The live page's types are checked by TypeScript, which is not of Python's world: Debian's
# node-typescript. CI has it.
check: $(INSTALLED)  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	if [ -n "$$CI" ] || command -v tsc >/dev/null; then tsc --project service/page; \
	  else echo 'The live page was not checked: there is no tsc (apt-get install node-typescript).'; fi

.PHONY: docs dist
# Each page lies where it does in the repository, so that its links lead to the same.
docs: $(INSTALLED)  ## the site of the documentation, build/site, without a network; broken links are errors
	rm -rf build/pages build/site
	mkdir -p build/pages
	git ls-files -z --cached --others --exclude-standard '*.md' 'docs/*.png' 'docs/*.svg' 'docs/*.csv' examples \
	  | xargs -0 cp --parents --target-directory build/pages
	$(BIN)/zensical build --strict

dist: $(INSTALLED)  ## sdist and wheel, in dist
	$(BIN)/python -m build --no-isolation

tables: $(INSTALLED)  ## the table of docs/numbers.md, on the bundled stream
	$(BIN)/ttc evaluate bundled --preset table2 --json results/bundled.jsonl
	$(BIN)/ttc report results/bundled.jsonl --out results/report

small-batches: $(INSTALLED)  ## single images one after another against batches of 100
	for size in 1 100; do $(BIN)/ttc evaluate bundled --served --methods ttc --batch-size $$size \
	  --corruptions $(SOME) --json results/small-batches.jsonl; done
	$(BIN)/ttc evaluate bundled --methods source,norm,ttc --corruptions $(SOME) --json results/paper.jsonl
	$(BIN)/ttc report results/small-batches.jsonl --out results/small-batches
	$(BIN)/ttc report results/paper.jsonl --out results/paper

streams: $(INSTALLED)  ## what happens when a stream is not shuffled: methods × streams, and their page
	$(BIN)/python -m benchmarks.streams --page docs/what-happens-when.md

# It takes hours, goes on where it was, and says how far it is in the log.
study: $(STUDIED)  ## methods and the default's batch sizes over networks and seeds, in the background
	nohup nice sh -c 'for study in methods batches; do $(BIN)/python -m benchmarks.study $$study \
	  --networks $(NETWORKS) --rows results/methods.jsonl $(STUDY); done; \
	  $(BIN)/ttc report results/methods.jsonl --out results/study/report' \
	  > results/study-$(NETWORKS).log 2>&1 &
	@echo 'results/study-$(NETWORKS).log says how far it is; tables will be in results/study.'

ablation sensitivity: $(STUDIED)  ## the default, a part of it out or a setting of it far off, over networks
	$(BIN)/python -m benchmarks.study $@ --networks $(NETWORKS) $(STUDY)

# Their packages are read, not resolved: see the file.
$(VENV)/.studied: benchmarks/requirements.txt $(INSTALLED)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --requirement $<
	mkdir -p results
	touch $@

results/cifar10-network.pt: | $(INSTALLED)
	$(BIN)/python -m benchmarks.cifar10_network --out $@

bench: $(INSTALLED)  ## how near to a bare loop it is, and curves: under ten minutes; needs Debian's wrk
	$(BIN)/python -m benchmarks.bench $(BENCH)

gpu: $(INSTALLED)  ## on a CUDA device: the tests that need one, what bfloat16 brings there, the benchmark
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python -m benchmarks.precisions
	$(BIN)/python -m benchmarks.bench $(BENCH)

# Virtual environments and logs are in results/peers; it goes on where it was.
bench-peers: $(INSTALLED)  ## beside LitServe, mosec, Ray Serve, BentoML and FastAPI; needs Debian's wrk
	$(BIN)/python -m benchmarks.peers.compare $(PEERS)

cost: $(INSTALLED)  ## what each method costs, as a multiple of SOURCE
	$(BIN)/python -m benchmarks.cost --model $(MODEL)

harm: $(INSTALLED)  ## what the guard does where adapting does harm
	$(BIN)/python -m benchmarks.harm

# It goes on where it was: more minutes, or --streams, give more rows to fit to.
estimate: $(VENV)/.studied results/cifar10-network.pt  ## accuracy without labels: fit its numbers, see how wrong it is
	$(BIN)/python -m benchmarks.estimate collect --minutes 40
	$(BIN)/python -m benchmarks.estimate fit

saving: $(INSTALLED)  ## what saving costs the cameras
	$(BIN)/python -m benchmarks.saving

queue: $(INSTALLED)  ## what the queue costs, by the number of streams that wait
	$(BIN)/python -m benchmarks.queue

shared: $(INSTALLED)  ## images a second of many streams that share batches, beside those of one
	$(BIN)/python -m benchmarks.shared

beside: $(INSTALLED)  ## a lone camera's latency beside a client that sends large requests without end
	$(BIN)/python -m benchmarks.beside

monitoring: $(INSTALLED)  ## the dashboard and the rules, from the metrics
	$(BIN)/python -m monitoring.generate

picture: $(INSTALLED)  ## docs/dashboard.png, over a real replay; needs Debian's prometheus
	$(BIN)/python -m monitoring.picture

screenshots: $(INSTALLED)  ## docs/page*.png: the live page over a real replay; needs Debian's chromium
	$(BIN)/python -m monitoring.screenshots

clean:
	rm -rf $(VENV) $(LOWEST) $(KSERVE) build dist results
