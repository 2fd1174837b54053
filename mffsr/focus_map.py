"""Which frame is in focus where: the label map of a bracket of N frames.

    two:   FAPN, first against second (`mffsr.compare`)                        ── labels
    more:  detail of each ── sharpest frame ── composite ── FAPN, each frame
           against the composite, where its detail could win                  ── labels

The paper decides between two photos, and so does FAPN: it knows sharp from blurred, not two kinds of blur. Of
more frames the one with most detail around each pixel is taken first, which is right but for the
neighbourhood of edges; against that composite, sharp nearly everywhere, every frame is then held. The
composite is complete before the next comparison begins, so the map does not depend on the tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mffsr.compare import TIE, Comparison, Detail, compare, contrast, detail, detail_window
from mffsr.device import Runtime
from mffsr.frames import Frame, row_blocks
from mffsr.model import JointModel
from mffsr.photo import Pixels
from mffsr.regions import Glow, Labels, fill_holes, nearby, settle_undecided, undecided_regions

__all__ = ["FocusMap", "Labels", "Seen", "Tie", "decide_focus", "preview"]

Tie = Literal["first", "last"] | None
Seen = Callable[[int], NDArray[np.bool_]] | None
Progress = Callable[[int, int], None]
Hold = Callable[..., Comparison]  # of two frames, by the network

PLAUSIBLE = 0.5  # a frame with less of the composite's detail than this is not in focus there
SEARCH = 4  # detail windows: no further from where it has most detail is a frame looked for
PREFERRED = 1.15  # where a frame is preferred, another needs so many times its detail


class FocusMap(NamedTuple):
    """The decision for a whole bracket."""

    labels: Labels  # H×W uint16: index of the frame each pixel is taken from
    # H×W, 0…255: |M1 − M2| of a pair, 0 where `mffsr.rims` overrules it; of a stack the contrast of detail
    # too, where it was left to decide
    confidence: NDArray[np.uint8]
    undecided: float  # share of the picture that is as sharp, or as plain, in all frames, 0…1
    tiles_run: int  # tiles of full resolution that went through FAPN
    tiles_all: int  # the same if it ran everywhere


def decide_focus(
    model: JointModel,
    frames: Sequence[Frame],
    runtime: Runtime,
    *,
    tile: int,
    tie: Tie = None,
    adaptive: bool = True,
    seen: Seen = None,
    progress: Progress = lambda done, total: None,
) -> FocusMap:
    """Return the label map and confidence of frames of one size, before the last hole filling.

    `tile` is the side of a tile's core in pixels; it changes memory and time, not the result.
    Where a decision is less clear than `TIE`, or neither frame shows detail, `tie` gives the pixel to the
    first or the last of the frames that tie. `seen(i)` (H×W) is where frame i has pixels of its own, if
    frames do not cover the picture. `adaptive`: see `mffsr.compare`. `progress` is given tiles done, and all
    of them.
    """
    hold = partial(compare, model, runtime=runtime, tile=tile, adaptive=adaptive)
    decide = _decide_pair if len(frames) == 2 else _decide_stack
    return decide(frames, hold, tie, seen, progress)


def _decide_pair(frames: Sequence[Frame], hold: Hold, tie: Tie, seen: Seen, progress: Progress) -> FocusMap:
    """Decide between two frames, as the paper does."""
    differs = contrast(detail(frames[0]), detail(frames[1]))
    undecided = undecided_regions(differs)
    compared = hold(frames[0], frames[1], differs=differs, progress=progress)
    margin = np.abs(compared.margin).astype(np.uint8)
    wins = compared.margin > 0
    if tie is not None:
        wins = np.where((margin < TIE) | undecided, tie == "last", wins)
    if seen is not None:
        wins = seen(1) & (wins | ~seen(0))
    return FocusMap(
        wins.astype(np.uint16),
        margin,
        float(undecided.mean()),
        compared.tiles_run,
        compared.tiles_all,
    )


class _Details(NamedTuple):
    """The detail of all frames, summed up."""

    most: Detail
    contrast: NDArray[np.float16]  # between the frame with most and that with least of it
    sharpest: Labels  # the frame with most detail around each pixel
    undecided: NDArray[np.bool_]  # regions that are as sharp, or as plain, in all frames
    around: list[NDArray[np.float32]]  # what detail each frame has nearby


def _measure(frames: Sequence[Frame], tie: Tie, seen: Seen) -> _Details:
    """Find the frame with most detail around each pixel; among nearly equal ones the one `tie` asks for."""
    most = least = detail(frames[0])
    own = most if seen is None else np.where(seen(0), most, np.float16(-1))  # what another has to exceed
    around = [nearby(most)]
    sharpest = np.zeros(most.shape, np.uint16)
    needed = np.float16({None: 1.0, "first": PREFERRED, "last": 1 / PREFERRED}[tie])
    for index in range(1, len(frames)):
        found = detail(frames[index])
        most, least = np.maximum(most, found), np.minimum(least, found)
        around.append(nearby(found))
        if seen is not None:
            found = np.where(seen(index), found, np.float16(-1))
        better = (found > own * needed) & (found >= 0)
        sharpest[better] = index
        own = np.where(better, np.maximum(own, found), own)  # a frame that ties lowers no bar
    differs = contrast(most, least)
    return _Details(most, differs, sharpest, undecided_regions(differs), around)


def _decide_stack(frames: Sequence[Frame], hold: Hold, tie: Tie, seen: Seen, progress: Progress) -> FocusMap:
    """Decide between more than two frames: the sharpest by detail, then FAPN against their composite."""
    details = _measure(frames, tie, seen)
    labels = details.sharpest.copy()
    glow = Glow.of(details.most, details.contrast, details.around)
    if tie is None:
        blurred = np.zeros(labels.shape, np.bool_)
        for index in range(len(frames)):
            blurred |= (labels == index) & glow.blurred(index)
        labels = settle_undecided(labels, details.contrast, blurred & glow.likely(details.most))
    labels = fill_holes(labels)
    if seen is not None:  # which neither of the two knows of
        for index in range(len(frames)):
            outside = (labels == index) & ~seen(index)
            labels[outside] = details.sharpest[outside]
    confidence = (details.contrast * 255).astype(np.uint8)
    composite: Pixels = np.empty(frames[0].shape, frames[0].dtype)
    for index, frame in enumerate(frames):
        _paste(composite, frame, labels == index)
    run = every = 0
    for index, frame in enumerate(frames):
        where = _worth_asking(_plausible(index, detail(frame), details, glow), labels == index)
        if seen is not None:
            where &= seen(index)

        def told(done: int, total: int, before: int = index) -> None:
            progress(before * total + done, len(frames) * total)

        compared = hold(composite, frame, where=where, progress=told)
        run, every = run + compared.tiles_run, every + compared.tiles_all
        margin = np.abs(compared.margin).astype(np.uint8)
        wins = where & (compared.margin > 0)
        if tie is not None:
            wins &= margin >= TIE
        confidence = np.where(wins, margin, np.where(where, np.minimum(confidence, margin), confidence))
        labels[wins] = index
        _paste(composite, frame, wins)
    return FocusMap(labels, confidence, float(details.undecided.mean()), run, every)


def _plausible(index: int, own: Detail, details: _Details, glow: Glow) -> NDArray[np.bool_]:
    """Return where frame `index`, whose detail is its `own`, could be in focus, H×W.

    Near an edge of another frame detail does not tell, so there FAPN is to say; but a frame that blurs
    greatly what is nearby has to have its detail right there.
    """
    window = np.ones((detail_window(*own.shape),) * 2, np.uint8)
    much = own >= np.float16(PLAUSIBLE) * details.most
    found = cv2.dilate(much.astype(np.uint8), window) > 0
    found &= much | ~glow.blurred(index, greatly=True)
    found &= ~(details.undecided | (glow.blurred(index) & glow.likely(own)))
    return np.asarray(found, np.bool_)


def _worth_asking(plausible: NDArray[np.bool_], own: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return where FAPN is asked for a frame, H×W: where plausible, near its `own` pixels, specks left out.

    Far from all that it won by detail a frame is plausible in specks, and where another is as sharp. Each
    speck would cost FAPN over all its reach, and what it says there is not better than what detail said.
    """
    side = detail_window(*own.shape)
    window = np.ones((2 * SEARCH * side + 1,) * 2, np.uint8)
    found = plausible & (cv2.dilate(own.astype(np.uint8), window) > 0)
    _, parts, stats, _ = cv2.connectedComponentsWithStats((found | own).astype(np.uint8))
    large = stats[:, cv2.CC_STAT_AREA] >= side**2
    return np.asarray(found & ~own & large[parts], np.bool_)


def _paste(composite: Pixels, frame: Frame, wins: NDArray[np.bool_]) -> None:
    """Put the frame into the composite where it wins, by a few rows."""
    for rows in row_blocks(composite.shape, composite.dtype.itemsize):
        part = (rows, slice(None))
        if wins[part].any():
            composite[part] = np.where(wins[part][:, :, None], frame[part], composite[part])


def preview(labels: Labels, count: int) -> NDArray[np.uint8]:
    """Return the label map as colours, H×W×3: hues from red (first frame) to violet (last)."""
    hue = np.linspace(0, 280, count, dtype=np.float32)  # degrees; in 8 bits there are but 180 of them
    hsv = np.stack((hue, np.full_like(hue, 0.75), np.full_like(hue, 0.92)), 1)[None]
    colours = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0]
    chosen: NDArray[np.uint8] = np.rint(colours * 255).astype(np.uint8)[labels]
    return chosen
