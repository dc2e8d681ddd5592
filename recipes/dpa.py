"""Dual Prototype Attention as its authors train it: VGG-16, 512 pixels."""

MODEL = "dpa"
BACKBONE = "vgg16"
IMAGE_SIZE = 512
