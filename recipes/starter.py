"""A small GSA-Net for little data and CPUs, as ``assets/starter.pt`` was trained.

assets/starter.md has the commands. Flow maps are those of DIS without the camera's motion.
"""

BACKBONE = "tf_efficientnet_lite0"
CHANNELS = 64
NUM_CLUSTERS = 32
DECODER_IMAGE = False
IMAGE_SIZE = 352  # of validation and test
IMAGE_SIZES = [320]  # of the training, which --image-size does not change
CROP_SCALE = 0.6
FLOW_TURN = 180.0
STILL_SHARE = 0.3
BATCH_SIZE = 8
