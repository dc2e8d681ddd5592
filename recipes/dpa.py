"""Dual Prototype Attention as its authors' code trains and tests it, as far as settings reach."""

MODEL = "dpa"
BACKBONE = "vgg16"
TRAIN_SETS = ["DAVIS_train", "YTVOS_train"]
IMAGE_SIZE = 512
IMAGE_SIZES = [384, 416, 448, 480, 512]
NUM_REFERENCES = 4
CROP_SCALE = 0.94  # about 30 of the 480 rows of DAVIS less
SHARPNESS = 2.0
RECOLOUR_FLOW = False
STRETCH_MASKS = True  # an evaluation takes this from a flag or from --config
