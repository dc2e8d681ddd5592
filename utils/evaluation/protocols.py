"""The test sets' own rules: what of a set is scored, and what is averaged over what.

A protocol is chosen by the set's name (:func:`choose_protocol`) and turns the scores of frames into
the rows of a score table (:func:`summarise`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from utils.evaluation.metrics import Statistics, counted, statistics


class ProtocolError(ValueError):
    """A set that a protocol does not fit."""


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
        by_class: whether frames are averaged by class (a sequence's name up to its first
            underscore), and then over classes, instead of by sequence and over sequences.
        rule: what is averaged over what, in words.
    """

    name: str
    sets: tuple[str, ...]
    measures: tuple[str, ...]
    columns: tuple[str, ...]
    first_and_last: bool
    every_frame: bool
    by_class: bool
    rule: str


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
            by_class=False,
            rule="J and F of every frame but the first and last of a sequence: mean, recall and "
            "decay by sequence, then their means over sequences",
        ),
        Protocol(
            name="fbms",
            sets=("fbms",),
            measures=("J",),
            columns=("mean",),
            first_and_last=True,
            every_frame=False,
            by_class=False,
            rule="J of the annotated frames: mean by sequence, then the mean over sequences",
        ),
        Protocol(
            name="youtube_objects",
            sets=("ytobj", "youtubeobjects"),
            measures=("J",),
            columns=("mean",),
            first_and_last=True,
            every_frame=False,
            by_class=True,
            rule="J of the annotated frames: mean over all of a class, then the mean over classes",
        ),
        Protocol(
            name="long_videos",
            sets=("longvideos",),
            measures=("J", "F"),
            columns=("mean", "recall", "decay"),
            first_and_last=True,
            every_frame=False,
            by_class=False,
            rule="J and F of the annotated frames: mean, recall and decay by sequence, then their "
            "means over sequences",
        ),
    )
}


@dataclass(frozen=True)
class SequenceScores:
    """The scores of a sequence's annotated frames, in their order in time.

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


def check_classes(protocol: Protocol, sequences: Iterable[str]) -> None:
    """Refuse names that tell no class, for a protocol that needs them.

    Raises:
        ProtocolError: a sequence's name has no underscore, with the class before it.
    """
    unnamed = (
        [name for name in sequences if not name.partition("_")[1]] if protocol.by_class else []
    )
    if unnamed:
        raise ProtocolError(
            f"{protocol.name} averages over classes, but the names of {len(unnamed)} sequences say "
            f"none, as {unnamed[0]}; expected <class>_<video>, as bird_0001"
        )


def summarise(scores: Mapping[str, SequenceScores], protocol: Protocol) -> list[Row]:
    """The rows of a set's score table: sequences, then classes if the protocol has them, then
    ``average``, the mean of the classes or of the sequences.

    Raises:
        ValueError: no sequences.
    """
    if not scores:
        raise ValueError("no sequences to summarise: expected at least one")
    sequences = [_row(name, "sequence", [one], protocol) for name, one in scores.items()]
    classes: dict[str, list[SequenceScores]] = {}
    if protocol.by_class:
        for name, one in scores.items():
            classes.setdefault(name.partition("_")[0], []).append(one)
    groups = [_row(name, "class", several, protocol) for name, several in classes.items()]
    return [*sequences, *groups, _average(groups or sequences)]


def _row(name: str, kind: str, scores: list[SequenceScores], protocol: Protocol) -> Row:
    values = {
        measure: np.concatenate(
            [counted(one.values[measure], protocol.first_and_last) for one in scores]
        )
        for measure in protocol.measures
    }
    return Row(
        name,
        kind,
        len(values[protocol.measures[0]]),
        {measure: statistics(v) for measure, v in values.items()},
    )


def _average(rows: Iterable[Row]) -> Row:
    rows = list(rows)
    return Row(
        "average",
        "average",
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
