"""Fine-tuning on a few annotated frames of your own videos, from a checkpoint of stage 2.

    python train.py --config runs/train/settings.py recipes/finetune.py --run-name mine
        --stage1-checkpoint runs/train/last.pt --train-sets mine --val-set mine

The first file gives the checkpoint's network and input size. An epoch has each annotated frame
once; EPOCHS is meant for about ten frames.
"""

LEARNING_RATE = 1e-5
MIN_LEARNING_RATE = 1e-6
BATCH_SIZE = 4
EPOCHS = 40
VALIDATE_EVERY = 10
FREEZE_STEPS = 0  # SMTC's transformer learns from the first step on
STILL_SHARE = 0.0  # the photos of the checkpoint's training are not needed
