# Everything a newcomer types. Each target prepares the virtual environment itself; a second start is immediate.
PYTHON ?= python3
VENV ?= .venv
PIP = $(VENV)/bin/python -m pip
# xformers has CUDA operators only: it is installed where there is an NVIDIA GPU.
EXTRAS = test$(shell command -v nvidia-smi >/dev/null 2>&1 && echo ,xformers)
READY = $(VENV)/.ready
# Test files that run side by side. More than 2 pay off from 8 cores: some tests start two ranks of their own.
AT_ONCE ?= 2

.PHONY: demo test test-slow test-gpu lint coverage clean

demo: $(READY)
	$(VENV)/bin/cadiff demo $(ARGS)

test: $(READY)
	$(VENV)/bin/coverage erase
	$(VENV)/bin/coverage run -m pytest -n $(AT_ONCE) --dist loadfile --no-loadscope-reorder $(ARGS)
	$(VENV)/bin/coverage combine -q
	$(VENV)/bin/coverage report --fail-under=85 --skip-covered
	$(MAKE) --no-print-directory lint

test-slow: $(READY)
	$(VENV)/bin/python -m pytest -m slow $(ARGS)

test-gpu: $(READY)
	$(VENV)/bin/python -m pytest -m gpu $(ARGS)

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

$(READY): setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "CADiff needs Python 3.11 or newer; say which with: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt torch setuptools
	$(PIP) install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $(READY)

clean:
	rm -rf $(VENV) runs data build *.egg-info .coverage*
