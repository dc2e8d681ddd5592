"""GSA-Net with ResNet-101 at 512 pixels: of the paper's Table 1 and its ablations (Sec. 4.6)."""

TRAIN_SETS = ["DAVIS_train", "YTVOS_train"]  # Sec. 4.1
BACKBONE = "resnet101"
IMAGE_SIZE = 512
