"""A film of pictures that browsers play: H.264 in an MP4."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import av
import cv2
import numpy as np

from datasets.clips import Clip
from datasets.live import LiveVideo

_BT709 = 1  # FFmpeg's number of it, for matrix, primaries and transfer alike
_LIMITED = 1  # of the range 16 to 235


@contextmanager
def open_film(path: Path, clip: Clip | LiveVideo) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that adds a picture, uint8 RGB (H, W, 3), to a film.

    The film is upright and without sound, and has the clip's rate and shape of pixels. H.264 in
    yuv420p needs even sides, so an odd side is repeated once at the right or bottom.
    """
    height, width = clip.size
    with av.open(f"file:{path}", "w", format="mp4", options={"movflags": "+faststart"}) as film:
        stream = film.add_stream("libx264", rate=clip.rate)
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "20", "preset": "veryfast"}
        codec = stream.codec_context
        codec.time_base = stream.time_base = 1 / clip.rate
        codec.sample_aspect_ratio = clip.aspect
        codec.color_range = _LIMITED
        codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
        numbers = count()

        def add(picture: np.ndarray) -> None:
            padding = (0, height % 2, 0, width % 2)
            picture = cv2.copyMakeBorder(picture, *padding, cv2.BORDER_REPLICATE)
            converted = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
            )
            converted.pts, converted.time_base = next(numbers), codec.time_base
            film.mux(stream.encode(converted))

        yield add
        film.mux(stream.encode())
