"""The test sets' own rules: what of a set is scored, and what is averaged over what.

A protocol is chosen by the set's name (:func:`choose_protocol`) and turns the scores of frames into
the rows of a score table (:func:`summarise`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from datasets.layout import Frame, Sequence
from datasets.prepare.sources import YOUTUBE_OBJECTS_CLASSES
from utils.evaluation.metrics import Statistics, statistics


@dataclass(frozen=True)
class Protocol:
    """The rules of one test set.

    Attributes:
        name: as PROTOCOL in config.py and the result files have it.
        sets: what the names of its sets begin with, in lower case, letters and digits only.
        measures: names in ``utils.evaluation.metrics.MEASURES``.
        columns: which of ``Statistics`` are reported.
        first_and_last: whether the first and the last frame of a sequence count.
        every_frame: whether every frame must be annotated; otherwise those that are count.
        empty_truths: whether a frame counts whose ground truth holds no object.
        classes: whether the table also has the mean over the sequences of each class.
        rule: what is averaged over what, in words, and who averages so.
    """

    name: str
    sets: tuple[str, ...]
    measures: tuple[str, ...]
    columns: tuple[str, ...]
    first_and_last: bool
    every_frame: bool
    empty_truths: bool
    classes: bool
    rule: str

    def frames_to_score(self, sequence: Sequence) -> list[Frame]:
        """The frames of a sequence that need a mask, in order.

        Whether a ground truth is empty is only known when it is read: see
        ``utils.evaluation.scoring.score_frame``.
        """
        annotated = [frame for frame in sequence.frames if frame.mask is not None]
        # Of one or two frames nothing would be left.
        return annotated if self.first_and_last or len(annotated) <= 2 else annotated[1:-1]


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="davis2016",
            sets=("davis",),
            measures=("J", "F"),
            columns=("mean", "recall", "decay"),
            first_and_last=False,
            every_frame=True,
            empty_truths=True,
            classes=False,
            rule="J and F of every frame but the first and last of a sequence: mean, recall and "
            "decay by sequence, then their means over sequences (as the DAVIS 2016 benchmark)",
        ),
        Protocol(
            name="fbms",
            sets=("fbms",),
            measures=("J",),
            columns=("mean",),
            first_and_last=True,
            every_frame=False,
            empty_truths=False,
            classes=False,
            rule="J of the annotated frames that hold an object: mean by sequence, then the mean "
            "over sequences (as the published code of TMO and FakeFlow)",
        ),
        Protocol(
            name="youtube_objects",
            sets=("ytobj", "youtubeobjects"),
            measures=("J",),
            columns=("mean",),
            first_and_last=True,
            every_frame=False,
            empty_truths=False,
            classes=True,
            rule="J of the annotated frames that hold an object: mean by sequence, then the mean "
            "over all sequences, and over those of each class (as the published code of TMO and "
            "FakeFlow)",
        ),
        Protocol(
            name="long_videos",
            sets=("longvideos",),
            measures=("J", "F"),
            columns=("mean", "recall", "decay"),
            first_and_last=True,
            every_frame=False,
            empty_truths=False,
            classes=False,
            rule="J and F of the annotated frames that hold an object: mean, recall and decay by "
            "sequence, then their means over sequences (the mean of J as the published code of "
            "TMO and FakeFlow; the rest as DAVIS defines it)",
        ),
    )
}


@dataclass(frozen=True)
class SequenceScores:
    """The scores of a sequence's frames that count, in their order in time.

    Attributes:
        frames: their names without the sequence's, ``(T,)``.
        values: by measure, float64 ``(T,)`` in [0, 1].
    """

    frames: tuple[str, ...]
    values: dict[str, np.ndarray]


@dataclass(frozen=True)
class Row:
    """One row of a score table.

    Attributes:
        name: of the sequence or class; ``average`` for the last row.
        kind: ``sequence``, ``class`` or ``average``.
        frames: how many count.
        statistics: by measure.
    """

    name: str
    kind: str
    frames: int
    statistics: dict[str, Statistics]

    @property
    def mean(self) -> float:
        """The mean of the measures' means: J&F where there are both, else J."""
        return float(np.mean([one.mean for one in self.statistics.values()]))


def choose_protocol(
    set_name: str, chosen: str | None = None, every_frame: bool = True
) -> tuple[Protocol, str]:
    """The rules for a set, and why they are the ones.

    Args:
        set_name: as ``DAVIS_test``; its beginning tells the protocol, whatever its case.
        chosen: PROTOCOL of config.py, which goes before the name.
        every_frame: whether every frame of the set is annotated. A set of any other name gets DAVIS
            2016's rules if so, else those of Long-Videos.

    Returns:
        The protocol, and half a sentence for the user.
    """
    if chosen is not None:
        return PROTOCOLS[chosen], "as PROTOCOL says"
    letters = "".join(letter for letter in set_name.lower() if letter.isalnum())
    for protocol in PROTOCOLS.values():
        if letters.startswith(protocol.sets):
            return protocol, f"as the name {set_name} says"
    name = "davis2016" if every_frame else "long_videos"
    found = "every frame is" if every_frame else "not every frame is"
    return PROTOCOLS[name], f"as {found} annotated (PROTOCOL takes another)"


def class_of(sequence: str) -> str | None:
    """The first of YouTube-Objects' classes that a sequence's name has as a word, if any.

    ``bird_0001`` and ``my_bird`` are birds, ``birdcage_1`` is not.
    """
    words = re.findall("[a-z]+", sequence.lower())
    return next((word for word in words if word in YOUTUBE_OBJECTS_CLASSES), None)


def summarise(scores: Mapping[str, SequenceScores], protocol: Protocol) -> list[Row]:
    """The rows of a set's score table: sequences, then classes if the protocol has them, then
    ``average``, the mean over the sequences.

    A sequence whose name has no class is in the average and in no class.

    Raises:
        ValueError: no sequences.
    """
    if not scores:
        raise ValueError("no sequences to summarise: expected at least one")
    sequences = [
        Row(
            name,
            "sequence",
            len(one.frames),
            {measure: statistics(one.values[measure]) for measure in protocol.measures},
        )
        for name, one in scores.items()
    ]
    classes: dict[str, list[Row]] = {}
    for row in sequences if protocol.classes else ():
        if (name := class_of(row.name)) is not None:
            classes.setdefault(name, []).append(row)
    means = [_mean(name, "class", rows) for name, rows in classes.items()]
    return [*sequences, *means, _mean("average", "average", sequences)]


def _mean(name: str, kind: str, rows: list[Row]) -> Row:
    return Row(
        name,
        kind,
        sum(row.frames for row in rows),
        {
            measure: Statistics(
                *(
                    float(np.mean([getattr(row.statistics[measure], column) for row in rows]))
                    for column in ("mean", "recall", "decay")
                )
            )
            for measure in rows[0].statistics
        },
    )
