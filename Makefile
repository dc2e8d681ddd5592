# make demo: the whole pipeline on synthetic data (MODEL=dpa: of that network).  make test: lint and tests.
PYTHON ?= python3
DEMO ?= demo
MODEL ?= gsanet
PY := .venv/bin/python

# Small enough for two CPU cores; everything else is as in config.py.
DEMO_SETTINGS := --model $(MODEL) --data-root $(DEMO)/data --output-dir $(DEMO)/runs --gpu "" --workers 1 \
	--backbone regnety_002 --pretrained-backbone false --image-size 128 --channels 64 \
	--num-clusters 16 --num-neighbours 8 --batch-size 4 --learning-rate 1e-3

# At these sizes a second thread costs more than it saves; a second process does not.
demo test: export OMP_NUM_THREADS := 1

.PHONY: demo test clean

.venv/.demo: requirements.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet -r requirements.txt
	touch $@

.venv/.test: .venv/.demo requirements-dev.txt
	$(PY) -m pip install --quiet -r requirements-dev.txt
	touch $@

demo: .venv/.demo
	rm -rf $(DEMO)/runs $(DEMO)/results
	$(PY) -m datasets.synthetic --data-root $(DEMO)/data --overwrite
	$(PY) -m datasets.flow --data-root $(DEMO)/data --set DAVIS_train --estimator dis
	$(PY) -m datasets.flow --data-root $(DEMO)/data --set DAVIS_test --estimator dis
	$(PY) pretrain.py $(DEMO_SETTINGS) --epochs 6 --validate-every 6
	$(PY) train.py $(DEMO_SETTINGS) --epochs 5 --validate-every 5 \
		--stage1-checkpoint $(DEMO)/runs/pretrain/last.pt
	@$(PY) evaluate.py $(DEMO_SETTINGS) --checkpoint $(DEMO)/runs/train/last.pt \
		--output $(DEMO)/results

test: .venv/.test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	$(PY) -m pytest -n 2 --dist worksteal

clean:
	rm -rf .venv $(DEMO)
