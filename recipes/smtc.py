"""SMTC as its authors' last release trains it: DINO's ViT-S/16 and clips of 256 x 256 pixels.

It needs no masks. Three slips of the release are copied: the regions, Gaussians that do not learn,
and stochastic depth while frozen; docs/smtc.md says how to train without them. Evaluate with
``--image-size 480 --image-width 800 --num-iterations 5``, as the authors do. An epoch has all
clips of the videos; 25 of YouTube-VOS are about the authors' 10,000 steps.
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
INSTANCE_REGION = "logit"
REPARAMETERISED = False
DROP_PATH_WHILE_FROZEN = True
BATCH_SIZE = 128
EPOCHS = 25
LEARNING_RATE = 2e-5
MIN_LEARNING_RATE = 2e-6
