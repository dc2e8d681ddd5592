"""The rules of each test set: the frames that are scored, and the averages of their scores.

A protocol is chosen by the set's name (:func:`choose_protocol`) and turns the scores of frames into
the rows of a score table (:func:`summarise`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from datasets.known_sets import YOUTUBE_OBJECTS_CLASSES
from datasets.layout import Frame, VideoFiles
from utils.evaluation.metrics import Statistics, statistics

# What is scored: all objects as one; each with the proposal that is assigned to it over the whole
# video, or anew in every frame; each with the mask of its own number; the video as a partition; or
# grey maps of all objects as one.
ONE, MATCHED, MATCHED_PER_FRAME, NUMBERED = "one", "matched", "matched_per_frame", "numbered"
WHOLE_VIDEO, SALIENCY = "whole_video", "saliency"
LOWER_IS_BETTER = ("MAE",)  # measures


@dataclass(frozen=True)
class Protocol:
    """The rules of one test set. ``name`` is its PROTOCOL; ``rule`` says the rules in words."""

    name: str
    # How its sets' names begin, in lower case, letters and digits only. The first one counts.
    sets: tuple[str, ...]
    rule: str
    # Names in utils.evaluation.metrics.MEASURES, if masks are scored frame by frame.
    measures: tuple[str, ...] = ("J", "F")
    columns: tuple[str, ...] = ("mean", "recall", "decay")  # of Statistics, to be reported
    first_and_last: bool = True  # the first and the last frame of a sequence count
    every_frame: bool = False  # every frame must be annotated; False: the annotated ones count
    empty_truths: bool = False  # a frame counts if its true mask holds no object
    classes: bool = False  # the table has the mean over the sequences of each class
    objects: str = ONE  # what is scored, see above
    warning: str = ""

    def frames_to_score(self, sequence: VideoFiles) -> list[Frame]:
        """The frames of a sequence that need a mask; ``score_frame`` leaves out empty truths."""
        annotated = [frame for frame in sequence.frames if frame.mask is not None]
        if self.first_and_last:
            return annotated
        # Of one or two frames nothing would be left, but the first mask may have been given.
        given = self.objects == NUMBERED
        return annotated[1:-1] or annotated[1 if given else 0 :]

    @property
    def per_object(self) -> bool:
        """Whether each object has scores of its own."""
        return self.objects in (MATCHED, MATCHED_PER_FRAME, NUMBERED)

    @property
    def one_object(self) -> bool:
        """Whether all objects are scored as one."""
        return self.objects in (ONE, SALIENCY)

    @property
    def overall(self) -> tuple[str, ...]:
        """The measures whose mean is the overall score; others are not of one kind."""
        return self.measures[:1] if self.objects in (WHOLE_VIDEO, SALIENCY) else self.measures

    def sequence_of(self, row: str) -> str:
        """The sequence that a row of the table belongs to: an object's is named judo_2."""
        return row.rpartition("_")[0] if self.per_object else row


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="davis2017_semi_supervised",
            sets=("davis17semi", "davis2017semi"),
            rule="J and F of each object with the mask of its number, in every frame but the first "
            "and last (of two frames the second): mean, recall and decay by object, then their "
            "means over all objects (as the DAVIS 2017 evaluator)",
            first_and_last=False,
            every_frame=True,
            empty_truths=True,
            objects=NUMBERED,
        ),
        Protocol(
            name="davis2017_unsupervised",
            sets=("davis17", "davis2017"),
            rule="J and F of each object with the proposal that is assigned to it over the whole "
            "video, in every frame, without void; at most 20 proposals: mean, recall and decay by "
            "object, then their means over all objects (as the DAVIS 2017 evaluator)",
            every_frame=True,
            empty_truths=True,
            objects=MATCHED,
        ),
        Protocol(
            name="per_frame_matching",
            sets=(),
            rule="as davis2017_unsupervised, but with another assignment in every frame, and with "
            "any number of proposals (as the code of SMTC and SSL-UVOS)",
            every_frame=True,
            empty_truths=True,
            objects=MATCHED_PER_FRAME,
            warning="an object may be another proposal in every frame, which makes scores higher; "
            "compare them only with scores by the same rule",
        ),
        Protocol(
            name="whole_video",
            sets=("movi", "ytvis", "youtubevis"),
            rule="FG-ARI and mIoU of the proposals with the objects over all pixels of a video, "
            "the same number in all of its frames: then their means over videos",
            measures=("FG-ARI", "mIoU"),
            columns=("mean",),
            empty_truths=True,
            objects=WHOLE_VIDEO,
        ),
        Protocol(
            name="saliency",
            sets=("visal", "davsod"),
            rule="S, F, E and MAE of grey maps, of the annotated frames but the first and last: "
            "mean by sequence, then over sequences; F and E at the threshold where this mean is "
            "highest (S, F and MAE as the published code of DAVSOD)",
            measures=("S", "maxF", "maxE", "MAE"),
            columns=("mean",),
            first_and_last=False,
            empty_truths=True,
            objects=SALIENCY,
        ),
        Protocol(
            name="davis2016",
            sets=("davis",),
            rule="J and F of every frame but the first and last of a sequence: mean, recall and "
            "decay by sequence, then their means over sequences (as the DAVIS 2016 benchmark)",
            first_and_last=False,
            every_frame=True,
            empty_truths=True,
        ),
        Protocol(
            name="fbms",
            sets=("fbms",),
            rule="J of the annotated frames that hold an object: mean by sequence, then the mean "
            "over sequences (as the published code of TMO and FakeFlow)",
            measures=("J",),
            columns=("mean",),
        ),
        Protocol(
            name="segtrack_v2",
            sets=("segtrack",),
            rule="J of the annotated frames that hold an object, all objects as one: mean by "
            "sequence, then the mean over sequences",
            measures=("J",),
            columns=("mean",),
        ),
        Protocol(
            name="youtube_objects",
            sets=("ytobj", "youtubeobjects"),
            rule="J of the annotated frames that hold an object: mean by sequence, then the mean "
            "over all sequences, and over those of each class (as the published code of TMO and "
            "FakeFlow)",
            measures=("J",),
            columns=("mean",),
            classes=True,
        ),
        Protocol(
            name="long_videos",
            sets=("longvideos",),
            rule="J and F of the annotated frames that hold an object: mean, recall and decay by "
            "sequence, then their means over sequences (the mean of J as the published code of "
            "TMO and FakeFlow; the rest as DAVIS defines it)",
        ),
    )
}


@dataclass(frozen=True)
class SequenceScores:
    """The scores of a sequence's or object's frames that count, in order."""

    frames: tuple[str, ...]  # their names without the sequence's
    values: dict[str, np.ndarray]  # by measure, float64 (T,) in [0, 1]; FG-ARI in [-1, 1]


@dataclass(frozen=True)
class Row:
    """One row of a score table."""

    name: str  # of the sequence, object or class
    kind: str  # sequence, object, class or average
    frames: int  # number of frames that count
    statistics: dict[str, Statistics]  # by measure
    overall: tuple[str, ...]  # of the protocol

    @property
    def mean(self) -> float:
        """The overall score: J&F where there are both, else the first measure."""
        return float(np.mean([self.statistics[measure].mean for measure in self.overall]))


def choose_protocol(
    set_name: str, chosen: str | None = None, every_frame: bool = True
) -> tuple[Protocol, str]:
    """The rules for a set, and the reason for them, half a sentence for the user.

    They are the ``chosen`` ones, or follow from the beginning of the set's name. A set of any other
    name gets DAVIS 2016's rules if every frame is annotated, else those of Long-Videos.
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
    """The first class of YouTube-Objects that a sequence's name has as a word, if any.

    ``bird_0001`` and ``my_bird`` are birds, ``birdcage_1`` is not.
    """
    words = re.findall("[a-z]+", sequence.lower())
    return next((word for word in words if word in YOUTUBE_OBJECTS_CLASSES), None)


def summarise(scores: Mapping[str, SequenceScores], protocol: Protocol) -> list[Row]:
    """The rows of a score table: sequences, classes if the protocol has them, then the average.

    A sequence whose name has no class is in the average and in no class.
    """
    sequences = [
        Row(
            name,
            "object" if protocol.per_object else "sequence",
            len(one.frames),
            {measure: statistics(one.values[measure]) for measure in protocol.measures},
            protocol.overall,
        )
        for name, one in scores.items()
    ]
    classes: dict[str, list[Row]] = {}
    for row in sequences if protocol.classes else ():
        if (name := class_of(row.name)) is not None:
            classes.setdefault(name, []).append(row)
    means = [_mean(name, "class", rows, protocol) for name, rows in classes.items()]
    return [*sequences, *means, _mean("average", "average", sequences, protocol)]


def _mean(name: str, kind: str, rows: list[Row], protocol: Protocol) -> Row:
    frames = {protocol.sequence_of(row.name): row.frames for row in rows}
    means = {}
    for measure in rows[0].statistics:
        columns = [vars(row.statistics[measure]) for row in rows]
        means[measure] = Statistics(
            **{name: float(np.mean([one[name] for one in columns])) for name in columns[0]}
        )
    return Row(name, kind, sum(frames.values()), means, protocol.overall)
