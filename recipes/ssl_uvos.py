"""SSL-UVOS: DINO's ViT-S/8 and clips of 192 x 384 pixels, without masks.

Rate, batch and about 30,000 steps are those that an issue of the authors' code reports for the
paper: seven epochs of all clips of YouTube-VOS. docs/ssl_uvos.md has the values of the code.
Evaluate with ``--image-size 320 --image-width 480``, as the authors do.
"""

MODEL = "ssl_uvos"
BACKBONE = "vit_small_patch8_224.dino"
TRAIN_SETS = ["YTVOS_train"]
IMAGE_SIZE = 192
IMAGE_WIDTH = 384
CROP_SCALE = 1.0
FLIP_PROBABILITY = 0.0
ROTATION_PROBABILITY = 0.0
BRIGHTNESS = 0.0
CONTRAST = 0.0
SATURATION = 0.0
STAGE1_CHECKPOINT = None
BATCH_SIZE = 16
EPOCHS = 7
MIN_LEARNING_RATE = 1e-6
