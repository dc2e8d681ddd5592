"""Every setting of pretrain.py, train.py and evaluate.py.

Edit a value and run the script, or pass the same name as a flag:
``python train.py --batch-size 4 --backbone mit_b0``. Section numbers are the GSA-Net paper's.
utils/kinds.py explains the kinds behind the colons. The words in brackets after a group's title:

- resume: these settings may change when a run is continued (--resume).
- test: evaluate.py takes these settings from a flag, or else from the checkpoint.
- objects: as test, for networks that have the setting.
- masks, machine: evaluate.py takes these settings from a flag, or else from this file.
- set, panels, video, tta: as masks, but only with --set, --video or --tta; "set" also with --masks.
- flow: these settings have an effect only on networks that take flow maps.
- output: these settings belong to one run alone.

evaluate.py takes all other settings from the checkpoint.
"""

from __future__ import annotations

# Data root [resume, set]
DATA_ROOT: path = "data"  # folder that holds the sets below, laid out as the README shows

# Run folder [output]
OUTPUT_DIR: path = "runs"  # where run folders are made
RUN_NAME: optional(str) = None  # name of the run's folder; None takes "pretrain" or "train"

# Machine [resume, machine]
GPU: gpus = "0"  # GPU indices, "0,1" for one process on each of two; "" trains on the CPU
WORKERS: whole(0) = 8  # loader processes per training process, at most one a core; 0: none
EVAL_BATCH_SIZE: whole(1) = 4  # frames in a batch of validation and evaluation

# Speed [resume, masks]
MIXED_PRECISION: bool = True  # bfloat16 on GPUs and CPUs that have it; False: float32
COMPILE: bool = False  # torch.compile, for evaluate.py and training on one GPU; slow to start

# Training data
PRETRAIN_SET: str = "DUTS_train"  # still images with masks, for stage 1 (Sec. 4.1)
PRETRAIN_VAL_SHARE: number(above=0, below=1) = 0.05  # share of them kept for validation
TRAIN_SETS: list_of(str) = ["DAVIS_train"]  # video sets for stage 2; the paper adds "YTVOS_train"
BALANCE_SETS: bool = True  # an epoch takes at most as many frames of further sets as of the first
STILL_SHARE: number(0, below=1) = 0.0  # share of stage 2's samples that are images of PRETRAIN_SET

# Validation and test set [set]
VAL_SET: str = "DAVIS_test"  # video set that train.py validates on; best.pt is chosen by its J
PROTOCOL: optional(protocol) = None  # rules of scoring, see docs/evaluation.md; None: by VAL_SET
FOREGROUND: one_of("border", "oracle") = "border"  # which of several objects are the foreground

# Pictures of a test set [panels]
PANEL_STEP: whole(0) = 1  # evaluate.py draws the picture panel of every n-th frame; 0 draws none

# Input and references [test]
IMAGE_SIZE: multiple_of(32, 8192) = 384  # side of the square network input in pixels (Sec. 4.4)
IMAGE_WIDTH: optional(multiple_of(32, 8192)) = None  # makes it a rectangle, IMAGE_SIZE high
NUM_REFERENCES: whole(1, 100) = 3  # reference frames (N_R, Sec. 4.4)
NUM_ITERATIONS: whole(0, 100) = 3  # rounds of slot attention (T, Sec. 3.5)

# Flow maps [test, flow]
RECOLOUR_FLOW: bool = True  # a mirrored or rotated flow map changes its colours, as its motion does

# Augmentation in training
IMAGE_SIZES: optional(list_of(multiple_of(32, 8192))) = None  # a step draws one; None: IMAGE_SIZE
FLIP_PROBABILITY: share = 0.5  # how often a frame is mirrored left to right
CROP_SCALE: number(above=0, most=1) = 0.8  # smallest side of the random crop, as a share; 1: none
ROTATION_PROBABILITY: share = 0.2  # how often a frame is rotated
ROTATION_DEGREES: number(0, 180) = 15.0  # largest rotation to either side
BRIGHTNESS: share = 0.5  # image brightness is multiplied by 1 +- at most this
CONTRAST: share = 0.5  # image contrast, likewise
SATURATION: share = 1.0  # image saturation, likewise
SHARPNESS: number(0) = 0.0  # image sharpness, likewise, but by no less than 0
FLOW_TURN: number(0, 180) = 0.0  # flow directions are turned as one by at most this many degrees

# Network (Sec. 3)
MODEL: str = "gsanet"  # which network of models/ to train: gsanet, dpa, smtc or ssl_uvos
BACKBONE: str = "mit_b2"  # resnet101, mit_b0 to mit_b5, or a timm name, see docs/training.md
PRETRAINED_BACKBONE: bool = True  # start from published weights; False starts from random ones
BACKBONE_WEIGHTS: optional(path) = None  # local file or folder with them; None: a download
CHANNELS: multiple_of(4) = 128  # channels of the embedded features and the slots (C_L = C_G)
NUM_CLUSTERS: whole(1) = 64  # k-means clusters of the local extractor (M, called D in Sec. 3.3)
NUM_NEIGHBOURS: whole(1) = 16  # features that KNN filtering keeps for each slot (N, Sec. 3.5)
DECODER_IMAGE: bool = True  # the mask decoder's finest level sees the image; False: features alone
REFERENCE_GRADIENT: bool = False  # train the encoder through the references too; costs memory

# Ablation switches (Table 2)
GUIDED_SLOTS: bool = True  # GS: slots from the slot generator; False: randomly initialised slots
KNN_FILTERING: bool = True  # KNN: each slot attends to its nearest features; False: to all
SLOT_ATTENTION: bool = True  # SA: refine slots; False: guided ones as they are, random ones unused
AGGREGATION_TRANSFORMER: bool = True  # FAT; False: the plain transformer of slot attention

# Dual Prototype Attention (MODEL = "dpa")
INTER_MODALITY_ATTENTION: bool = True  # IMA: appearance and motion refine each other's correlations
INTER_FRAME_ATTENTION: bool = True  # IFA: attention to the prototypes of the reference frames
GRAPH_NEIGHBOURS: whole(1) = 10  # nearest prototypes that each one gets messages from
GRAPH_ROUNDS: whole(0, 100) = 3  # rounds of message passing

# Vision transformers (MODEL = "ssl_uvos" or "smtc")
POSITION_TABLE: one_of("dino", "timm") = "dino"  # whose rule resizes a transformer's positions
FRAME_GAP: whole(1) = 4  # distance of a training clip's frames

# Objects of a video (ssl_uvos, smtc) [objects]
MAX_OBJECTS: whole(1, 254) = 20  # at most this number of objects, the largest
KEY_FRAME_STEP: whole(1) = 10  # r: attention maps cover the tokens of every r-th frame
KEY_FRAME_TAIL: bool = True  # the last frames have a key frame, too, if they are fewer than r
MERGE_DISTANCE: number(above=0) = 1.0  # tau: attention maps merge up to this divergence in nats
SOFT_MASKS: bool = True  # enlarge similarities to the clusters; False: labels, as the release
DISCOVERY: one_of("tracks", "release") = "tracks"  # release: objects of each frame by itself
NOISE_SEED: whole(0, 2**32 - 1) = 0  # of the random slots that instances begin with
KINETICS_STATISTICS: bool = False  # normalise videos as the release's evaluation does

# SMTC (MODEL = "smtc")
SEMANTIC_SLOTS: whole(2, 100) = 16  # S, kinds of things
INSTANCE_SLOTS: whole(1, 6) = 4  # P, the instance slots of each semantic slot
CORRESPONDENCE_GRID: whole(1) = 16  # side of the grid of the previous frame's positions
CYCLIC_CLIPS: bool = True  # a clip's first frame has the last one before it; False: the second
INSTANCE_REGION: one_of("soft", "probability", "logit") = "soft"  # whose tokens instances share
REPARAMETERISED: bool = True  # the instances' Gaussians learn; False: not, as in the release
VALID_PROBABILITY: share = 0.3  # a token counts for a semantic above this probability
VALID_AREA: share = 0.2  # instances learn if their semantic has more than this share of the frame
DROP_PATH: number(0, below=1) = 0.1  # stochastic depth of the transformer in training
DROP_PATH_WHILE_FROZEN: bool = False  # stochastic depth while the transformer is frozen, too
FREEZE_STEPS: whole(0) = 3000  # first steps in which the transformer is frozen
ENCODER_RATE: share = 0.01  # the transformer's learning rate, as a share of LEARNING_RATE
DECAY_GAUSSIANS: bool = True  # weight decay of the slots' means and deviations
TEACHER_MOMENTUM: share = 0.999  # share of itself that the teacher keeps in a step
TEACHER_ENCODER_FOLLOWS: bool = False  # the teacher's transformer learns, too; False: never

# Loss (Sec. 3.7)
LOSS: optional(one_of("iou+bce", "iou", "bce")) = None  # of each mask; None: the network's own
SIGMA: number(0) = 1.0  # strength of the pixel weight w = sigma * |P - G| in bce (eq. 5)
SUPERVISE_SLOT_MAPS: bool = True  # also train the slots' similarity maps with the mask

# Training (Sec. 4.4)
STAGE1_CHECKPOINT: optional(path) = "runs/pretrain/best.pt"  # what train.py starts from, or None
BATCH_SIZE: whole(1) = 12  # samples in a step, over all GPUs together
ACCUMULATION_STEPS: whole(1) = 1  # passes that a step is made of, each with a part of the batch
ADAM_BETA1: number(0, below=1) = 0.9  # decay of Adam's mean of the gradients
ADAM_BETA2: number(0, below=1) = 0.999  # decay of Adam's mean of their squares
ADAM_EPSILON: number(above=0) = 1e-8  # Adam's epsilon
SEED: whole(0, 2**32 - 1) = 0  # of weights, sample order, augmentation and references

# Course of training [resume]
EPOCHS: whole(1) = 200  # passes over the training data
LEARNING_RATE: number(above=0) = 1e-4  # at the first step
MIN_LEARNING_RATE: number(0) = 1e-5  # at the last step, after a cosine schedule
CLIP_GRADIENT: optional(number(above=0)) = None  # largest norm of the gradient; None: no limit
VALIDATE_EVERY: whole(1) = 1  # epochs between validations; the last epoch is always validated
VAL_FRAME_STEP: whole(1) = 1  # validate on every n-th frame of a sequence
CHECKPOINT_MINUTES: number(above=0) = 10.0  # last.pt is written this often and after every epoch
MAX_BAD_STEPS: whole(0) = 10  # bad steps in a row (loss or gradient not finite) before a run stops

# Masks [masks]
THRESHOLD: share = 0.5  # a pixel is foreground where its probability is above this
STRETCH_MASKS: bool = False  # stretch each prediction to [0, 1] before the threshold

# Test-time augmentation (Table 1's *) [tta]
TTA_SCALES: list_of(number(above=0, most=4)) = [0.75, 1.0, 1.75]  # sizes, as shares of IMAGE_SIZE
TTA_FLIP: bool = True  # each size mirrored too

# Further results [panels, video]
SAVE: optional(one_of("probabilities", "probabilities16")) = None  # soft masks, of 8 or 16 bits

# Any video [video]
FRAME_RATE: number(0.1, 1000) = 24.0  # frames per second of a folder of frames; a file has its own

# Flow maps of any video [video, flow]
FLOW_ESTIMATOR: optional(one_of("raft", "dis")) = None  # None: as in training; dis is OpenCV's
FLOW_WEIGHTS: optional(path) = None  # local file with RAFT's weights; None: a download
REMOVE_CAMERA_MOTION: optional(bool) = None  # None: as in training
