# Every target honours an environment that is already active; otherwise it makes .venv once.
ifdef VIRTUAL_ENV
  BIN := $(VIRTUAL_ENV)/bin/
else ifdef CONDA_PREFIX
  BIN := $(CONDA_PREFIX)/bin/
else
  BIN := .venv/bin/
endif
PYTHON := $(BIN)python

.PHONY: help install reproduce reference report text protocol sample test export clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/bin/python:
	python3 -m venv .venv

install: $(if $(VIRTUAL_ENV)$(CONDA_PREFIX),,.venv/bin/python) ## install the package with its development extra, if it is not there
	@$(PYTHON) -c 'import maskgil, nbdev, pytest, nbconvert, psutil' 2>/dev/null || $(PYTHON) -m pip install -q -e '.[dev]'

reproduce: install ## run every cell of every study in the profile that fits this machine, and render the report
	@$(PYTHON) -m maskgil.cli reproduce
	@$(MAKE) --no-print-directory report

reference: install ## the committed reference: all seeds of the mini profile, then results/reference/
	@for seed in 0 1 2; do $(PYTHON) -m maskgil.cli reproduce --profile mini --seed $$seed || exit 1; done
	@$(PYTHON) -m maskgil.cli promote

report: install ## render reports/ from the records
	@$(BIN)papermill nbs/report.ipynb

protocol: install ## what each choice of an evaluation is worth in FID points, on the committed checkpoint
	@$(BIN)papermill nbs/protocol.ipynb

sample: install ## draw a sheet of images from the committed checkpoint
	@$(PYTHON) -m maskgil.cli sample

text: install ## train text to image in two stages, and render the report
	@$(BIN)papermill nbs/text_to_image.ipynb
	@$(MAKE) --no-print-directory report

test: install ## the test suite: notebooks, processes, published checkpoints
	$(PYTHON) -m pytest

export: install ## notebooks to maskgil/*.py and README.md, and clean
	$(BIN)nbdev_export && $(BIN)nbdev_clean
	$(BIN)jupyter nbconvert --log-level WARN --to markdown --execute nbs/index.ipynb --output-dir . --output README \
	  --TagRemovePreprocessor.enabled True --TagRemovePreprocessor.remove_input_tags hide-input
	cat -s README.md > README.md.part && mv README.md.part README.md # the empty lines of what was hidden

clean: ## remove what can be made again
	rm -rf .cache build dist *.egg-info
