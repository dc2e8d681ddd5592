"""Plots of scores over the frames of a sequence, as SVG."""

import io
from collections.abc import Mapping, Sequence

import numpy as np

from datasets.files import printable

LINES = (  # colour, and lengths of dashes and gaps, so that lines differ not by colour alone
    ("#1f83c4", (1, 0)),
    ("#d9691a", (5, 1.5)),
    ("#12936d", (1.5, 1.5)),
    ("#b8569b", (8, 2, 2, 2)),
    ("#808080", (12, 3)),
    ("#a07a10", (4, 2, 1, 2)),
)
_WIDTH, _HEIGHT = 3.8, 1.5  # of a plot, in inches
_FEW_FRAMES = 30  # up to this number, every frame has a dot
_NAME_LENGTH, _NAMES_LENGTH = 18, 50  # characters of a frame's name, and of all names below a plot
_STYLE = {
    # The background is transparent and the text grey, so that the page can be light or dark.
    **{f"{part}color": "#767676" for part in ("text.", "axes.label", "xtick.", "ytick.")},
    **{f"axes.spines.{side}": False for side in ("left", "right", "top", "bottom")},
    "axes.grid": True,
    "axes.xmargin": 0.02,
    "grid.color": "#76767640",
    "font.size": 7.5,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.5,
    "path.simplify_threshold": 0.5,  # pixels; bounds the size of the plots of long videos
    "svg.fonttype": "none",
    "svg.hashsalt": "",
    "text.parse_math": False,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


def plot_scores(frames: Sequence[str], plots: Mapping[str, Mapping[str, np.ndarray]]) -> bytes:
    """Scores over the frames of a sequence, given by their names, as an SVG file.

    ``plots`` stand one below the other: by title the lines by label, values (T,) in [0, 1]. They
    have the colours and dashes of LINES, again from the first after the last.
    """
    # Matplotlib takes half a second to import, at the start of every evaluation.
    from matplotlib import cycler, style
    from matplotlib.figure import Figure

    colours, dashes = zip(*LINES)
    cycle = cycler(color=colours, linestyle=[(0, one) for one in dashes])
    names = [
        name if len(name) <= _NAME_LENGTH else f"…{name[1 - _NAME_LENGTH :]}"
        for name in map(printable, frames)  # Matplotlib takes no bytes that are not UTF-8
    ]
    number = np.clip(_NAMES_LENGTH // max(map(len, names)), 2, 6)
    ticks = np.unique(np.linspace(0, len(names) - 1, number).round().astype(int))
    # Whatever the user's matplotlibrc says.
    with style.context({**_STYLE, "axes.prop_cycle": cycle}, after_reset=True):
        figure = Figure(figsize=(_WIDTH, _HEIGHT * len(plots)))
        figure.subplots_adjust(0.1, 0.16 / len(plots), 0.99, 0.98, hspace=0.25)
        axes = figure.subplots(len(plots), squeeze=False).flat
        for ax, (title, lines) in zip(axes, plots.items()):
            for values in lines.values():
                ax.plot(values, marker="." if len(names) <= _FEW_FRAMES else "")
            ax.set_ylabel(title, rotation="horizontal", labelpad=8)
            ax.set_ylim(-0.02, 1.02)
            ax.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
            ax.set_xticks(ticks, [names[tick] for tick in ticks])
            ax.get_xticklabels()[0].set_horizontalalignment("left")
            ax.get_xticklabels()[-1].set_horizontalalignment("right")
        file = io.BytesIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return file.getvalue()
