# make lab    opens the first notebook in JupyterLab
# make test   runs the tests and every notebook
# make check  format, lint, the direction of imports, types of the core and the fast tests, in a minute
# Each makes its own environment in .venv first. PIP_FLAGS is handed to pip.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
NBVAL := --nbval --nbval-current-env --nbval-cell-timeout=300 --nbval-kernel-startup-timeout=120
COLAB_TESTS := $(patsubst %,tests/test_%.py,bank loss methods minimal run settings)
ROOT := $(shell [ "$$(id -u)" = 0 ] && echo --allow-root)

.PHONY: lab test check notebooks pages links colab deepspeed api package gate sweep look regime speed clean

lab: .venv/ready
	$(BIN)/jupyter lab $(ROOT) notebooks/00_start_here.ipynb

test: .venv/ready .venv/browser
	$(BIN)/python -m pytest -m '' $(NBVAL) -n 2 --dist loadfile --no-loadscope-reorder

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile

# run the notebooks and keep their outputs, and draw the pictures of the README
notebooks: .venv/ready
	$(BIN)/python notebooks/run.py

# the course for where no kernel runs, in build/pages
pages: .venv/ready
	$(BIN)/python notebooks/pages.py

# the repository's address in every badge, Binder link and set-up cell: make links REPO=owner/name
links: .venv/ready
	$(BIN)/python -m tools.links $(REPO)

# notebooks 00 to 06 and the library's tests on Colab's packages, and what adding this one changes there
colab: .colab/ready
	.colab/bin/python -m tools.colab --resolve
	.colab/bin/python -m tools.colab
	.colab/bin/python -m pytest -m 'not processes and not browser' tests/test_hosts.py $(COLAB_TESTS)

# the reference of all modules from their docstrings, in build/api; pdoc reads it without a kernel
api: .venv/ready
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) "pdoc>=15,<17"
	$(BIN)/python -m pdoc --math --docformat google --output-directory build/api contaccum_lite $(addprefix contaccum_lite.,core data encoders staleness scale integrations evidence lab course)

# ContAccumLoss under DeepSpeed, which is installed for it and for nothing else
deepspeed: .venv/ready
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --no-build-isolation $(PIP_FLAGS) deepspeed
	DS_ACCELERATOR=cpu $(BIN)/python -m pytest -m '' tests/test_parallel.py -k zero

# what is published, in build/dist: a wheel and an sdist, checked
package: .venv/ready
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) build twine
	$(BIN)/python -m build --outdir build/dist
	$(BIN)/python -m twine check --strict build/dist/*
	$(BIN)/python -m tools.package build/dist/*.whl

# times, memory and sizes of all notebooks, and the tables of the instructor's guide
gate: .venv/ready
	$(BIN)/python -m benchmarks.gate

# all notebooks in order, with one thread and with two and random seeds: outputs must be those kept (a quarter of an hour)
sweep: .venv/ready
	$(BIN)/python -m benchmarks.gate --sweep

# pictures of all notebooks in the browser, light and dark, at two widths, in build/look
look: .venv/ready .venv/browser
	$(BIN)/python -m benchmarks.look

regime: .venv/ready
	$(BIN)/python -m benchmarks.ledger

speed: .venv/ready
	$(BIN)/python -m benchmarks.speed

.venv/ready: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python %d.%d is too old: give one of 3.11 or later, as in make PYTHON=python3.11 lab." % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --upgrade-strategy only-if-needed $(PIP_FLAGS) -r requirements.txt
	@touch $@

.colab/ready: binder/colab-freeze.txt pyproject.toml
	$(PYTHON) -m venv .colab
	grep -v '^plotly' binder/colab-freeze.txt > .colab/pins.txt
	.colab/bin/python -m pip install --quiet --no-compile $(PIP_FLAGS) -c .colab/pins.txt -e ".[widgets]" ipykernel nbclient psutil pytest hypothesis
	@touch $@

# a Chromium for the browser tests: one that is here, or Playwright's own; without either they are skipped
.venv/browser: .venv/ready
	@command -v chromium chromium-browser google-chrome google-chrome-stable >/dev/null || $(BIN)/python -m playwright install chromium || echo "No Chromium: the browser tests will be skipped."
	@touch $@

clean:
	rm -rf .venv .colab build *.egg-info
