"""Every setting of pretrain.py, train.py and evaluate.py.

Edit a value and run the script, or pass the same name as a flag:
``python train.py --batch-size 4 --backbone mit_b0``. Section numbers are the GSA-Net paper's.
"""

# Data
DATA_ROOT = "data"  # folder that holds the sets below, laid out as the README shows
PRETRAIN_SET = "DUTS_train"  # still images with masks, for stage 1 (Sec. 4.1)
TRAIN_SETS = ["DAVIS_train"]  # video sets for stage 2; add "YTVOS_train" for the paper's (Sec. 4.1)
BALANCE_SETS = True  # an epoch takes from each further set at most as many frames as the first has
VAL_SET = "DAVIS_test"  # video set that train.py validates on; best.pt is chosen by its J
IMAGE_SIZE = 384  # side of the square network input in pixels, a multiple of 32 (Sec. 4.4)
IMAGE_SIZES = None  # sizes in training, as [384, 448, 512]: each step draws one; None: IMAGE_SIZE
WORKERS = 8  # loader processes per training process, at most one a core; 0 loads in it itself

# Augmentation in training
FLIP_PROBABILITY = 0.5  # how often a frame is mirrored left to right
CROP_SCALE = 0.8  # smallest side of the random crop, as a share of the frame's side; 1 is no crop
ROTATION_PROBABILITY = 0.2  # how often a frame is rotated
ROTATION_DEGREES = 15.0  # largest rotation to either side
BRIGHTNESS = 0.5  # image brightness is multiplied by 1 +- at most this
CONTRAST = 0.5  # image contrast, likewise
SATURATION = 1.0  # image saturation, likewise
SHARPNESS = 0.0  # image sharpness, likewise, but by no less than 0; the authors' release: 2.0
RECOLOUR_FLOW = True  # a mirrored or rotated flow map also changes its colours, as its motion does
CAMERA_MOTION = 0.0  # random affine motion added to flow maps, in units of their largest motion
FLOW_TURN = 0.0  # flow directions are turned as one by at most this many degrees

# Stage 1's motion
PRETRAIN_MOTION = "none"  # none: the RGB stream alone (Sec. 4.3); simulated: the whole network
SIMULATED_CAMERA = 0.02  # largest motion by the camera between two frames, as a share of the side
SIMULATED_OBJECT = 0.03  # largest motion of the object's own, likewise
SIMULATED_PARALLAX = 0.4  # by how much near things move more with the camera, as a share
SIMULATED_DEFORMATION = 0.8  # the object's deformation to and fro, as a share of its motion
SIMULATED_FLOW_NOISE = 0.1  # smooth errors of flow maps, as a share of their largest motion
SIMULATED_FLOW_OUTLIERS = 1.0  # by how much stray pixels may exceed that, as a share: paler maps
SIMULATED_FLOW_BLUR = 0.025  # width of errors at motion's edges, as a share of the side
SIMULATED_SPAN = 8.0  # largest distance of a reference frame, in frames

# Network (Sec. 3)
MODEL = "gsanet"  # which network of models/ to train: gsanet or dpa
BACKBONE = "mit_b2"  # resnet101, mit_b0 to mit_b5, or any timm name with a four-level pyramid
PRETRAINED_BACKBONE = True  # start from ImageNet weights; False starts from random ones
BACKBONE_WEIGHTS = None  # local file or folder with the ImageNet weights, instead of a download
CHANNELS = 128  # channels of the embedded features and of the slots (C_L = C_G)
NUM_CLUSTERS = 64  # k-means clusters of the local extractor (M, called D in Sec. 3.3)
NUM_REFERENCES = 3  # reference frames (N_R, Sec. 4.4)
NUM_NEIGHBOURS = 16  # features that KNN filtering keeps for each slot (N, Sec. 3.5)
NUM_ITERATIONS = 3  # rounds of guided slot attention (T, Sec. 3.5)
DECODER_IMAGE = True  # the mask decoder's finest level sees the image again; False: features alone
REFERENCE_GRADIENT = False  # train the encoder through the reference frames too; costs memory

# Ablation switches (Table 2)
GUIDED_SLOTS = True  # GS: slots from the slot generator; False: randomly initialised slots
KNN_FILTERING = True  # KNN: each slot attends to its nearest features; False: to all of them
SLOT_ATTENTION = True  # SA: refine the slots; False: guided slots as they are, random ones not used
AGGREGATION_TRANSFORMER = True  # FAT; False: the plain transformer of slot attention

# Dual Prototype Attention (MODEL = "dpa")
INTER_MODALITY_ATTENTION = True  # IMA: appearance and motion refine each other's correlation maps
INTER_FRAME_ATTENTION = True  # IFA: attention to the prototypes of the reference frames
GRAPH_NEIGHBOURS = 10  # nearest prototypes that each one gets messages from
GRAPH_ROUNDS = 3  # rounds of message passing

# Loss (Sec. 3.7)
LOSS = None  # of each mask: iou+bce (eq. 5), iou or bce; None: that of the network's paper
SIGMA = 1.0  # strength of the pixel weight w = sigma * |P - G| in the cross-entropy (eq. 5)
SUPERVISE_SLOT_MAPS = True  # also train the slots' similarity maps with the mask

# Training (Sec. 4.4)
STAGE1_CHECKPOINT = "runs/pretrain/best.pt"  # what train.py starts from; None for nothing
EPOCHS = 200  # passes over the training data
BATCH_SIZE = 12  # samples in a step, over all GPUs together
ACCUMULATION_STEPS = 1  # passes that a step is made of, each with a part of the batch
LEARNING_RATE = 1e-4  # at the first step
MIN_LEARNING_RATE = 1e-5  # at the last step, after a cosine schedule
ADAM_BETA1 = 0.9  # decay of Adam's mean of the gradients
ADAM_BETA2 = 0.999  # decay of Adam's mean of their squares
ADAM_EPSILON = 1e-8  # Adam's epsilon
CLIP_GRADIENT = None  # largest norm of the gradient; None does not clip (the paper says nothing)
EMA_DECAY = None  # moving average of the weights, as 0.999, which is then validated and kept
SEED = 0  # of weights, sample order, augmentation and references
GPU = "0"  # GPU indices, "0,1" for one process on each of two; "" trains on the CPU
MIXED_PRECISION = True  # bfloat16 on GPUs; the CPU always computes in float32
COMPILE = False  # torch.compile of training steps and of evaluate.py; minutes at the start
OUTPUT_DIR = "runs"  # where run folders are made
RUN_NAME = None  # name of the run's folder; None takes "pretrain" or "train"
CHECKPOINT_MINUTES = 10.0  # last.pt is written this often, and after every epoch
MAX_BAD_STEPS = 10  # steps in a row with a loss or gradient that is not finite, before it stops
BAD_FILE_SHARE = 0.0  # share of an epoch's samples that may have an unreadable file; 0 for none

# Validation
PRETRAIN_VAL_SHARE = 0.05  # share of the still images kept back in stage 1 for validation
VALIDATE_EVERY = 1  # epochs between two validations; the last epoch is always validated
VAL_FRAME_STEP = 1  # validate on every n-th frame of a sequence

# Evaluation
EVAL_BATCH_SIZE = 4  # frames that go through the network together
THRESHOLD = 0.5  # a pixel is foreground where its probability is above this
STRETCH_MASKS = False  # stretch each prediction to [0, 1] before the threshold
PANEL_STEP = 1  # draw the picture panel of every n-th frame; 0 draws none
PROTOCOL = None  # davis2016, fbms, youtube_objects or long_videos; None: as the set's name says
TTA_SCALES = [0.75, 1.0, 1.75]  # with --tta: input sizes as shares of IMAGE_SIZE (Table 1's *)
TTA_FLIP = True  # with --tta: each size mirrored too

# Any video (evaluate.py --video)
FLOW_ESTIMATOR = "raft"  # raft: wants its weights and a GPU; dis: OpenCV's, needs neither
FLOW_WEIGHTS = None  # local file with RAFT's weights, instead of a download
REMOVE_CAMERA_MOTION = False  # as in python -m datasets.flow; also of simulated flow maps
FRAME_RATE = 24.0  # frames per second of a folder of frames; a file has its own
