"""References from the frames seen so far: which frames, how many, and how few are encoded."""

import pytest
import torch

from models.seen_references import SeenReferences


def seen_after(count, length):
    """The references' positions after each frame of a video, and how many were encoded."""
    seen, spread, encoded = SeenReferences(count), [], 0
    for position in range(length):
        if seen.takes(position):
            seen.add(position, {"rgb": torch.full((1, 1, 2), position)})
            encoded += 1
        references = seen.spread()["rgb"]
        assert references.shape == (1, references.shape[1], 2)
        spread.append(references[0, :, 0].tolist())
        assert len(seen.kept) < 2 * count
    return spread, encoded


def test_the_first_frames_are_all_references():
    spread, _ = seen_after(3, 4)
    assert spread == [[0], [1], [1, 2], [1, 2, 3]]  # frame 0 has no flow


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_references_reach_from_the_first_frame_to_a_late_one_at_even_distances(count):
    spread, encoded = seen_after(count, 1000)
    for position, references in enumerate(spread[1:], 1):
        assert references[0] == 1 and max(references) <= position
        assert sorted(set(references)) == references and len(references) == min(count, position)
    for position, references in enumerate(spread[50:] if count > 1 else (), 50):
        steps = [b - a for a, b in zip(references, [*references[1:], position])]
        # Between neighbours there are one to three of the steps at which frames are kept.
        assert max(steps) <= 3 * max(1, min(steps[:-1]))
        assert references[-1] >= position / 2
    assert encoded <= 2 * count * (2 + 10)  # the step is doubled with the length
