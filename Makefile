# make demo: the whole pipeline on synthetic data (MODEL=dpa, smtc or ssl_uvos: of that network).
# make test: lint and tests.
# make test-oldest: tests of models and training with the oldest packages that requirements.txt allows.
PYTHON ?= python3
DEMO ?= demo
MODEL ?= gsanet
PY := .venv/bin/python
OLDEST := .venv-oldest
# Newer ones have no wheels of the oldest packages.
OLDEST_PYTHON ?= python3.11
OLDEST_TESTS := tests/models tests/utils/training tests/utils/evaluation \
	tests/utils/test_processes.py tests/utils/test_transfer.py tests/test_precision.py \
	tests/datasets/test_threads.py tests/datasets/flow/test_estimators.py

# Small enough for two CPU cores; everything else is as in config.py, or in the recipe of a network
# that learns without masks. Its transformer has random weights here.
DEMO_MACHINE := --data-root $(DEMO)/data --output-dir $(DEMO)/runs --gpu "" --workers 1
WITH_MASKS := $(filter gsanet dpa,$(MODEL))
ifneq ($(WITH_MASKS),)
DEMO_SETTINGS := --model $(MODEL) $(DEMO_MACHINE) \
	--backbone regnety_002 --pretrained-backbone false --image-size 128 --channels 64 \
	--num-clusters 16 --num-neighbours 8 --batch-size 8 --learning-rate 1.5e-3
else
DEMO_SETTINGS := --config recipes/$(MODEL).py $(DEMO_MACHINE) --train-sets DAVIS_train \
	--backbone vit_tiny_patch16_224 --pretrained-backbone false --image-size 128 --image-width 192 \
	--batch-size 4 --learning-rate 1e-3
endif

# At these sizes a second thread costs more than it saves; a second process does not.
demo test test-oldest: export OMP_NUM_THREADS := 1

.PHONY: demo test test-oldest clean

.venv/.demo: requirements.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet -r requirements.txt
	touch $@

.venv/.test: .venv/.demo requirements-dev.txt
	$(PY) -m pip install --quiet -r requirements-dev.txt
	touch $@

# Package >= 1.2 becomes package == 1.2.*, the last release of the oldest version.
$(OLDEST)/.test: requirements.txt requirements-dev.txt
	$(OLDEST_PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --upgrade pip
	for file in $^; do sed 's/>=\([0-9.]*\)/==\1.*/' $$file > $(OLDEST)/$$file || exit 1; done
	$(OLDEST)/bin/python -m pip install --quiet -r $(OLDEST)/requirements-dev.txt
	touch $@

demo: .venv/.demo
	rm -rf $(DEMO)/runs $(DEMO)/results
	$(PY) -m datasets.synthetic --data-root $(DEMO)/data --overwrite
ifneq ($(WITH_MASKS),)
	$(PY) -m datasets.flow --data-root $(DEMO)/data --set DAVIS_train --estimator dis
	$(PY) -m datasets.flow --data-root $(DEMO)/data --set DAVIS_test --estimator dis
	$(PY) pretrain.py $(DEMO_SETTINGS) --epochs 6 --validate-every 6
	$(PY) train.py $(DEMO_SETTINGS) --epochs 5 --validate-every 5 \
		--stage1-checkpoint $(DEMO)/runs/pretrain/last.pt
else
	$(PY) train.py $(DEMO_SETTINGS) --epochs 2 --validate-every 2
endif
	@$(PY) evaluate.py $(DEMO_SETTINGS) --checkpoint $(DEMO)/runs/train/last.pt \
		--output $(DEMO)/results

test: .venv/.test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	$(PY) -m pytest -n 2 --dist worksteal

test-oldest: $(OLDEST)/.test
	$(OLDEST)/bin/python -m pytest -n 2 --dist worksteal $(OLDEST_TESTS)

clean:
	rm -rf .venv $(OLDEST) $(DEMO)
