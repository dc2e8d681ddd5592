"""GSA-Net as the paper trains it: MiT-b2, 384 pixels (Sec. 4.4). The rest is as in config.py."""

TRAIN_SETS = ["DAVIS_train", "YTVOS_train"]  # Sec. 4.1
