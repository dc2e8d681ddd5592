"""SMTC near to its paper: as the authors' first code, and with Gaussians that learn.

The encoder is never frozen, the teacher's encoder follows it, and instances are valid in sharper
regions. An epoch has all clips of the videos; 1000 of YouTube-VOS are about 100,000 steps. Evaluate
as by ``recipes/smtc.py``.
"""

MODEL = "smtc"
BACKBONE = "vit_small_patch16_224.dino"
TRAIN_SETS = ["YTVOS_train"]
IMAGE_SIZE = 256
CROP_SCALE = 1.0
FLIP_PROBABILITY = 0.0
ROTATION_PROBABILITY = 0.0
BRIGHTNESS = 0.0
CONTRAST = 0.0
SATURATION = 0.0
STAGE1_CHECKPOINT = None
VALID_PROBABILITY = 0.5
FREEZE_STEPS = 0
TEACHER_ENCODER_FOLLOWS = True
BATCH_SIZE = 512
EPOCHS = 1000
VALIDATE_EVERY = 20  # a validation takes minutes
