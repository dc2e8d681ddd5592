"""Facts about published data sets, by the names that their sets have here."""

YOUTUBE_OBJECTS_CLASSES = (
    *("aeroplane", "bird", "boat", "car", "cat"),
    *("cow", "dog", "horse", "motorbike", "train"),
)

# Sequences, images and masks, as far as they are known. Sets without sequences are still images.
KNOWN_SETS: dict[str, dict[str, int]] = {
    "DUTS_train": {"images": 10553, "masks": 10553},
    "DUTS_test": {"images": 5019, "masks": 5019},
    "DAVIS_train": {"sequences": 30, "images": 2079, "masks": 2079},
    "DAVIS_test": {"sequences": 20, "images": 1376, "masks": 1376},
    "DAVIS17_train": {"sequences": 60},
    "DAVIS17_val": {"sequences": 30},
    "DAVIS17semi_train": {"sequences": 60},
    "DAVIS17semi_val": {"sequences": 30},
    "YTVOS_train": {"sequences": 3471},
    "FBMS_train": {"sequences": 29},
    "FBMS_test": {"sequences": 30},
    "SegTrackv2_test": {"sequences": 14},
    # 126 where every frame is there: of two sequences a single frame is annotated.
    "YTOBJ_test": {"sequences": 124},
    "LongVideos_test": {"sequences": 3},
}


def published_sequences(set_name: str) -> int | None:
    """How many sequences a set of this name has as published; None if it is none of these."""
    return KNOWN_SETS.get(set_name, {}).get("sequences")


def is_still_set(set_name: str) -> bool:
    """Whether a published set of this name has still images."""
    return set_name in KNOWN_SETS and published_sequences(set_name) is None
