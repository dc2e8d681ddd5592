"""GSA-Net as the authors' release trains and tests it, as far as settings reach.

docs/paper.md lists the release's other differences from the paper.
"""

TRAIN_SETS = ["DAVIS_train", "YTVOS_train"]
IMAGE_SIZE = 512
IMAGE_SIZES = [384, 416, 448, 480, 512]
NUM_REFERENCES = 4
BATCH_SIZE = 16
CROP_SCALE = 0.94  # about 30 of the 480 rows of DAVIS less
SHARPNESS = 2.0
RECOLOUR_FLOW = False
STRETCH_MASKS = True  # an evaluation takes this from a flag or from --config
