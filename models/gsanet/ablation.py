"""Table 2 and Figure 7 of the GSA-Net paper."""

from models.interface import Ablation

ABLATION = Ablation(
    switches={
        "GS": "guided_slots",
        "KNN": "knn_filtering",
        "SA": "slot_attention",
        "FAT": "aggregation_transformer",
    },
    rows={
        "a": (),
        "b": ("SA",),
        "c": ("GS", "SA"),
        "d": ("KNN", "SA"),
        "e": ("GS", "KNN", "SA"),
        "f": ("GS", "KNN", "SA", "FAT"),
    },
    table="table2",
    stage1_switches=(),
    swept="num_iterations",
    symbol="T",
    sweep=(1, 2, 3, 4, 5),
    sweep_needs="SA",
    sweep_table="figure7",
    paper={
        "a": (83.7, 83.3, 84.1),
        "b": (84.1, 83.8, 84.2),
        "c": (86.1, 85.8, 86.4),
        "d": (84.9, 84.6, 85.2),
        "e": (86.5, 86.7, 86.5),
        "f": (87.7, 87.0, 88.4),
    },
)
