# Every target honours an environment that is already active; otherwise it makes .venv once.
ifdef VIRTUAL_ENV
  BIN := $(VIRTUAL_ENV)/bin/
else ifdef CONDA_PREFIX
  BIN := $(CONDA_PREFIX)/bin/
else
  BIN := .venv/bin/
endif
PYTHON := $(BIN)python

.PHONY: help install reproduce remeasure tokenizers reference report page text protocol sample demo plan test faults rehearsal proof bench speedrun prices check export notebooks docs clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/bin/python:
	python3 -m venv .venv

install: $(if $(VIRTUAL_ENV)$(CONDA_PREFIX),,.venv/bin/python) ## install the package with its development extra, if it is not there
	@$(PYTHON) -c 'import maskgil, nbdev, pytest, nbconvert, psutil, onnxscript' 2>/dev/null || $(PYTHON) -m pip install -q -e '.[dev]'

reproduce: install ## render, measure again, and train again what fits in MINUTES (inf: every cell of every study)
	@$(PYTHON) -m maskgil.cli reproduce $(if $(MINUTES),--minutes $(MINUTES))
	@$(MAKE) --no-print-directory report

remeasure: install ## draw and measure the reference's tables again from its own models: nothing is trained
	@$(PYTHON) -m maskgil.remeasure

PROFILE ?= mini
SEEDS ?= 0 1 2
LANES ?= 0

reference: install ## the committed reference, with PROFILE=mini or midi, SEEDS="0 1 2", LANES=cells at a time; goes on where it was
	@for seed in $(SEEDS); do \
	  $(PYTHON) -m maskgil.cli reproduce --profile $(PROFILE) --seed $$seed --lanes $(LANES) --minutes inf || exit 1; done
	@$(PYTHON) -m maskgil.cli promote --profile $(PROFILE)
	@test $(PROFILE) != midi || $(PYTHON) -m maskgil.remeasure --keep true

report: install ## render reports/yours/ from the records: the paper, the reference, your runs
	@$(BIN)papermill nbs/report.ipynb

page: install ## render the committed reports/ from the paper and the reference alone
	@$(PYTHON) -m maskgil.cli report --reference True

tokenizers: install ## train the four small tokenizers anew, in results/checkpoints/small-tokenizers; hours
	@for row in maskgit-vq chameleon-vq llamagen-vq open-magvit2-vq; do \
	  $(PYTHON) scripts/small_tokenizer.py $$row --folder results/checkpoints/small-tokenizers/$$row || exit 1; done

plan: install ## what every study takes in the paper's profile, on several machines
	@$(PYTHON) -m maskgil.planner profile=paper

protocol: install ## what each choice of an evaluation is worth in FID points, on the committed checkpoint
	@$(BIN)papermill nbs/protocol.ipynb

sample: install ## draw a sheet of images from the committed checkpoint
	@$(PYTHON) -m maskgil.cli sample

DEMO := results/runs/demo/demo.ipynb

demo: install ## the demo in JupyterLab, with its outputs saved in results/runs/demo/; LAB=no only runs it
	@$(PYTHON) -c 'import ipywidgets, jupyterlab' 2>/dev/null || $(PYTHON) -m pip install -q -e '.[demo]'
	@mkdir -p $(dir $(DEMO))
	@$(BIN)papermill nbs/demo.ipynb $(DEMO)
	@test '$(LAB)' = no || $(BIN)jupyter lab $(DEMO)

text: install ## train text to image in two stages, and render the report
	@$(BIN)papermill nbs/text_to_image.ipynb
	@$(MAKE) --no-print-directory report

test: install ## the test suite: notebooks, processes, published checkpoints
	$(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

faults: install ## break things on purpose: kills, full disks, flipped bits, noise; half an hour on 2 cores
	@$(PYTHON) -m maskgil.faults

bench: install ## speed as a share of what this machine can do; PEERS=folder compares with published code
	@$(PYTHON) -m maskgil.speed $(if $(PEERS),--peers $(PEERS))

speedrun: install ## time to a fixed KID-EL0, our recipe beside the paper's; ENTRY=name for another, on a quiet machine
	@$(PYTHON) -m maskgil.speedrun $(if $(ENTRY),--entry $(ENTRY))

prices: install ## what approximate options of the samplers save and lose; PEERS=folder adds the released code
	@$(PYTHON) -m maskgil.approximate $(if $(PEERS),--peers $(PEERS))

rehearsal: install ## every study of the paper's profile on a stand-in for ImageNet, two processes on a CPU; FORM=--shortest
	@$(PYTHON) scripts/rehearsal.py $(FORM)

proof: install ## what one GPU does with the published sizes: tests and records, eight minutes; TINY=true on any machine
	@PYTHON=$(PYTHON) scripts/gpu_proof.sh $(if $(TINY),--tiny $(TINY))

check: install ## ruff on notebooks and tests, mypy on the library
	$(BIN)ruff check nbs maskgil tests benchmarks scripts
	$(BIN)mypy

export: install ## notebooks to maskgil/*.py and README.md, and clean
	$(BIN)nbdev_export && $(BIN)nbdev_clean
	$(BIN)jupyter nbconvert --log-level WARN --to markdown --execute nbs/index.ipynb --output-dir . --output README \
	  --TagRemovePreprocessor.enabled True --TagRemovePreprocessor.remove_input_tags hide-input
	cat -s README.md | sed 's|](\.\./|](|g' > README.md.part # without the empty lines of what was hidden, and links from the root
	mv README.md.part README.md

notebooks: install ## execute the study notebooks with the records of the reference, and keep their outputs
	$(PYTHON) scripts/show_reference.py

docs: install ## the documentation site, in site/
	@$(PYTHON) -c 'import mkdocs, mkdocs_jupyter, material, latex2mathml, onnxscript' 2>/dev/null || $(PYTHON) -m pip install -q -e '.[docs]'
	$(PYTHON) docs/build.py

clean: ## remove what can be made again
	rm -rf .cache build dist site docs/pages *.egg-info
