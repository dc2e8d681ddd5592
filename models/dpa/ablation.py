"""The ablation of DPA's two attentions; the paper's own scores were not at hand."""

from models.interface import Ablation

ABLATION = Ablation(
    switches={"IMA": "inter_modality_attention", "IFA": "inter_frame_attention"},
    rows={"a": (), "b": ("IMA",), "c": ("IFA",), "d": ("IMA", "IFA")},
    table="attention",
    stage1_switches=("IMA",),
    swept="num_references",
    symbol="R",
    sweep=(1, 2, 3, 4, 5),
    sweep_needs="IFA",
    sweep_table="references",
)
