"""What the ablation of each network switches on and off, and what it varies in the test.

``python -m utils.ablate`` runs it; a network of your own gets an ablation by an entry here.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Ablation:
    """The variants of one network that its ablation compares.

    Attributes:
        switches: settings that leave out a part of the network, by the part's short name.
        rows: the parts that each variant has, by its letter.
        table: file name of the rows' table.
        stage1_switches: the parts that stage 1's network has, too. Rows that agree in them share
            their stage 1.
        swept, symbol: a setting that can change after training, and the letter for it.
        sweep: its values.
        sweep_needs: the part that it belongs to; the last row which has it is tested with them.
        sweep_table: file name of the table by these values.
        paper: G, J and F on DAVIS 2016 in the paper, of every row; empty where they are not known.
    """

    switches: dict[str, str]
    rows: dict[str, tuple[str, ...]]
    table: str
    stage1_switches: tuple[str, ...]
    swept: str
    symbol: str
    sweep: tuple[int, ...]
    sweep_needs: str
    sweep_table: str
    paper: dict[str, tuple[float, float, float]] = field(default_factory=dict)


ABLATIONS = {
    # Table 2 and Figure 7 of the GSA-Net paper.
    "gsanet": Ablation(
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
    ),
    # Rows of our own: the DPA paper's scores were not at hand.
    "dpa": Ablation(
        switches={"IMA": "inter_modality_attention", "IFA": "inter_frame_attention"},
        rows={"a": (), "b": ("IMA",), "c": ("IFA",), "d": ("IMA", "IFA")},
        table="attention",
        stage1_switches=("IMA",),
        swept="num_references",
        symbol="R",
        sweep=(1, 2, 3, 4, 5),
        sweep_needs="IFA",
        sweep_table="references",
    ),
}
