# `make demo` shows the whole way on generated scans; `make test` runs all tests, `make test-fast` those that train nothing.
# `make gpu-test` runs the tests that need a GPU, `make build-test` builds without docker what the CPU image holds;
# `make torture` kills, starves and feeds damaged files to everything for half an hour, and `make mutants` changes the code
# of the core to see whether tests notice.
# `make install` gives the command `nnunet`, `make docs` writes docs/reference/commands.md. All use .venv, made on first use.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
DEMO ?= demo

.PHONY: demo install test test-fast gpu-test build-test torture mutants lint style docs clean

$(VENV)/.installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --requirement requirements.txt
	touch $@

install: $(VENV)/.installed
	$(RUN) -m pip install --quiet --no-deps --editable .

# Generated scans -> shards -> a trained network -> masks of scans it has not seen -> scores and pictures.
demo: $(VENV)/.installed
	rm -rf $(DEMO)
	$(RUN) download.py --task 00 --results $(DEMO)/data
	$(RUN) preprocess.py --task 00 --dim 3 --data $(DEMO)/data --results $(DEMO)/data
	$(RUN) main.py --exec_mode train --task 00 --dim 3 --data $(DEMO)/data --results $(DEMO)/results \
	  --deep_supervision --amp $(DEMO_TRAINING)
	$(RUN) preprocess.py --task 00 --dim 3 --exec_mode test --data $(DEMO)/data --results $(DEMO)/data
	$(RUN) main.py --exec_mode predict --task 00 --dim 3 --data $(DEMO)/data/00_3d/test --results $(DEMO)/results \
	  --ckpt_path $(DEMO)/results/checkpoints --amp --save_preds
	$(RUN) evaluate.py --preds $(DEMO)/results/preds_task_00_dim_3_fold_0 --lbls $(DEMO)/data/Task00_Phantom/labelsTs
	$(RUN) scripts/overlay.py --images $(DEMO)/data/Task00_Phantom/imagesTs \
	  --preds $(DEMO)/results/preds_task_00_dim_3_fold_0 --lbls $(DEMO)/data/Task00_Phantom/labelsTs \
	  --output $(DEMO)/results/overlay.png
	@echo "Masks, scores, overlay.png and progress.png are in $(DEMO)/results"

DEMO_TRAINING := --filters 12 24 48 96 --max_epochs 34 --skip_first_n_eval 33 --scheduler cosine --learning_rate 0.002 \
  --augment none

# Two files of tests beside each other, each on one core: tiny networks gain nothing from threads. A process that dies ends
# the run, which would wait for ever for the files that it had.
BESIDE := OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

test: lint
	$(BESIDE)

test-fast: style
	$(BESIDE) -m "not slow"

# What needs a CUDA device; all of it is skipped where there is none.
gpu-test: $(VENV)/.installed
	$(RUN) -m pytest -m gpu

# The steps of Dockerfile.cpu in a fresh virtual environment; downloads some 2 GB. BUILD=own-index where PyTorch's index is out
# of reach.
BUILD ?= as-written
build-test: $(VENV)/.installed
	NNUNET_BUILD=$(BUILD) $(RUN) -m pytest tests/test_build_steps.py

torture: $(VENV)/.installed
	$(RUN) -m tests.torture $(TORTURE)

mutants: $(VENV)/.installed
	$(RUN) -m tests.torture.mutants $(MUTANTS)

docs: $(VENV)/.installed
	$(RUN) scripts/commands_page.py

lint: style
	$(RUN) -m mypy

style: $(VENV)/.installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

clean:
	rm -rf $(VENV) $(DEMO)
