"""The numbers of registration: where one proxy lies in another.

A coarse guess comes from features (RANSAC), from phase correlation or from a neighbour; the
structure pyramid refines it from coarse to fine. The refinement is Gauss–Newton on

    sum over x of  w(x) · (F(W x) − R(x))²

with the symmetric gradient ½(∇R + ∇F) of efficient second-order minimisation (Benhimane and
Malis, 2004), so that neither frame's blur pulls the estimate, and Cauchy weights w, so that what
only one frame shows is not followed. OpenCV's `findTransformECC` has no similarity model, follows
outliers and costs three times as much.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mffsr.photo._registration_proxy import Float, Level, Proxy

__all__ = ["MOTIONS", "Fit", "Matrix", "Motion", "displacement", "fit"]

Matrix = NDArray[np.float64]  # 3×3, reference pixels to frame pixels
Motion = Literal["similarity", "affine", "homography"]

MAX_POINTS = 250_000
MAX_STEPS = 12
CONVERGED = 0.003  # pixels of the level
MIN_OVERLAP = 0.3  # of the reference
SHARED = 0.75  # correlation below which a finer level shows what only one frame has: defocus took the rest
SURE = 0.7  # correlation that no wrong place reaches
CELLS = 12  # the reference is cut into CELLS×CELLS cells to measure what remains
DESCRIPTOR_RATIO = 0.85

_PAN = [[[0, 0, 1], [0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 1], [0, 0, 0]]]
_TURN = [[[1, 0, 0], [0, 1, 0], [0, 0, 0]], [[0, -1, 0], [1, 0, 0], [0, 0, 0]]]
_SHEAR = [[[1, 0, 0], [0, -1, 0], [0, 0, 0]], [[0, 1, 0], [1, 0, 0], [0, 0, 0]]]
_TILT = [[[0, 0, 0], [0, 0, 0], [1, 0, 0]], [[0, 0, 0], [0, 0, 0], [0, 1, 0]]]
MOTIONS: dict[Motion, NDArray[np.float64]] = {
    "similarity": np.array(_PAN + _TURN, float),
    "affine": np.array(_PAN + _TURN + _SHEAR, float),
    "homography": np.array(_PAN + _TURN + _SHEAR + _TILT, float),
}


class Fit(NamedTuple):
    """Where a frame lies in the reference."""

    matrix: Matrix
    ecc: float  # correlation of the shared structure, −1..1
    residual: float  # median displacement still measured in the cells of the reference, frame pixels
    overlap: float  # share of the reference that the frame covers; of the one that sees less, where chained
    spread: float  # standard error of the displacement at the worst corner, frame pixels


class _Points(NamedTuple):
    """The pixels of one level of the reference that take part, K = rows·columns."""

    x: Float  # K, frame coordinates
    y: Float
    u: Float  # K, the same, centred and divided by `radius`
    v: Float
    value: Float  # K×3, structure and gradient per frame pixel
    cell: NDArray[np.intp]  # K, the cell each point lies in


def fit(
    frame: Proxy, reference: Proxy, motion: Motion, guesses: list[Matrix], *, features: bool = True
) -> Fit:
    """Register `frame` to `reference`, of the same size, from the best of all first guesses."""
    starts = [*guesses, np.eye(3), _by_phase(frame, reference)]
    found = _by_features(frame, reference) if features else None
    if found is not None:
        starts.append(found)
    judge = _judging_level(reference)
    starts = sorted(_distinct(starts, reference.size), key=lambda m: -correlation(frame, reference, m, judge))
    fits: list[Fit] = []
    for start in starts[:2]:
        matrix, shared = start, False
        for level in reversed(range(len(reference.levels))):
            # coarse levels hold too little for more than four parameters
            kind: Motion = motion if level < 2 else "similarity"
            finer, agreement = _refine(
                frame.levels[level], reference.levels[level], matrix, kind, reference.size
            )
            if shared and agreement < SHARED:
                break
            matrix, shared = finer, agreement >= SHARED
        fits.append(_measure(frame, reference, matrix, motion, judge))
        if fits[-1].ecc > SURE:  # else the second start may lead further
            break
    return max(fits, key=lambda result: result.ecc)


def displacement(matrix: Matrix, size: tuple[int, int]) -> float:
    """How far `matrix` moves the corner it moves most, in pixels; infinite where it cannot be applied."""
    width, height = size
    corners = np.array([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]], float)
    homogeneous = np.column_stack([corners, np.ones(4)]) @ matrix.T
    if not np.isfinite(homogeneous).all() or (homogeneous[:, 2] < 1e-3).any():
        return float("inf")
    return float(np.linalg.norm(homogeneous[:, :2] / homogeneous[:, 2:] - corners, axis=1).max())


def correlation(frame: Proxy, reference: Proxy, matrix: Matrix, level: int) -> float:
    """Correlation of the structure of both on `level`, −1..1; −1 where they hardly overlap."""
    return _agreement(frame.levels[level], matrix, _points(reference.levels[level], reference.size))


def _agreement(frame: Level, matrix: Matrix, points: _Points) -> float:
    """Correlation coefficient of `points` and what `frame` has at `matrix` · points."""
    sampled, inside = _sample(frame, matrix, points)
    if inside.mean() < MIN_OVERLAP:
        return -1.0
    a, b = sampled[inside, 0], points.value[inside, 0]
    a, b = a - a.mean(), b - b.mean()
    power = float(np.dot(a, a)) * float(np.dot(b, b))
    return float(np.dot(a, b)) / power**0.5 if power > 0 else -1.0


def _judging_level(proxy: Proxy) -> int:
    """The level on which frames are compared: coarse enough that defocus has not taken its structure."""
    sides = [min(level.size) for level in proxy.levels]
    return next((i for i, side in enumerate(sides) if side <= 200), len(sides) - 1)


def _distinct(starts: list[Matrix], size: tuple[int, int]) -> list[Matrix]:
    kept: list[Matrix] = []
    for start in starts:
        if displacement(start, size) == float("inf") or abs(np.linalg.det(start[:2, :2])) < 0.01:
            continue
        apart = [displacement(start @ np.linalg.inv(other), size) for other in kept]
        if min(apart, default=np.inf) > 0.002 * max(size):
            kept.append(start)
    return kept


def _by_features(frame: Proxy, reference: Proxy) -> Matrix | None:
    """The similarity that most features of both frames agree on, or None where there is none."""
    (to, to_words), (at, at_words) = frame.features, reference.features
    if len(to) < 8 or len(at) < 8:
        return None
    likeness = at_words @ to_words.T
    best = likeness.argmax(axis=1)
    rows = np.arange(len(at))
    score = likeness[rows, best]
    mutual = likeness.argmax(axis=0)[best] == rows
    likeness[rows, best] = -1.0
    second = likeness.max(axis=1)
    near = np.sqrt(np.maximum(2 - 2 * score, 0)) < DESCRIPTOR_RATIO * np.sqrt(np.maximum(2 - 2 * second, 0))
    keep = mutual & near
    if keep.sum() < 8:
        return None
    threshold = 3.0 * max(1.0, (reference.size[0] * reference.size[1] / 400_000) ** 0.5)
    try:
        matrix, inliers = cv2.estimateAffinePartial2D(
            at[keep], to[best[keep]], method=cv2.RANSAC, ransacReprojThreshold=threshold, maxIters=3000
        )
    except cv2.error:
        return None
    if matrix is None or inliers is None or int(inliers.sum()) < 6:
        return None
    return np.vstack([np.asarray(matrix, np.float64), [0.0, 0.0, 1.0]])


def _by_phase(frame: Proxy, reference: Proxy) -> Matrix:
    """The shift found by phase correlation of the structure, for frames with too few features."""
    index = _judging_level(reference)
    one, two = reference.levels[index], frame.levels[index]
    window = cv2.createHanningWindow(one.size, cv2.CV_32F)
    a, b = np.ascontiguousarray(one.image[..., 0]), np.ascontiguousarray(two.image[..., 0])
    (dx, dy), _ = cv2.phaseCorrelate(a, b, window)
    matrix = np.eye(3)
    matrix[:2, 2] = dx / one.scale[0], dy / one.scale[1]
    return matrix if np.isfinite(matrix).all() else np.eye(3)


def _points(level: Level, size: tuple[int, int]) -> _Points:
    """A regular subset of the pixels of `level`, at most MAX_POINTS."""
    width, height = level.size
    stride = max(1, int(np.ceil((width * height / MAX_POINTS) ** 0.5)))
    columns, rows = np.meshgrid(np.arange(0, width, stride), np.arange(0, height, stride))
    (sx, sy), (full_width, full_height) = level.scale, size
    x = ((columns.ravel() + 0.5) / sx - 0.5).astype(np.float32)
    y = ((rows.ravel() + 0.5) / sy - 0.5).astype(np.float32)
    centre, radius = _centre_and_radius(size)
    value = level.image[rows.ravel(), columns.ravel()] * np.array([1.0, sx, sy], np.float32)
    cell = (y * (CELLS / full_height)).astype(np.intp) * CELLS + (x * (CELLS / full_width)).astype(np.intp)
    return _Points(x, y, (x - centre[0]) / radius, (y - centre[1]) / radius, value, cell)


def _centre_and_radius(size: tuple[int, int]) -> tuple[Float, np.float32]:
    """Centre and radius that normalise frame coordinates."""
    centre = np.array([(size[0] - 1) / 2, (size[1] - 1) / 2], np.float32)
    return centre, np.float32(np.hypot(*size) / 2)


def _sample(level: Level, matrix: Matrix, points: _Points) -> tuple[Float, NDArray[np.bool_]]:
    """Structure and gradient (per frame pixel) of `level` at `matrix` · points, and which lie inside."""
    m = matrix.astype(np.float32)
    depth = m[2, 0] * points.x + m[2, 1] * points.y + m[2, 2]
    safe = np.where(depth > 1e-3, depth, np.float32(np.inf))
    x, y = level.locate(
        (m[0, 0] * points.x + m[0, 1] * points.y + m[0, 2]) / safe,
        (m[1, 0] * points.x + m[1, 1] * points.y + m[1, 2]) / safe,
    )
    width, height = level.size
    inside = (depth > 1e-3) & (x >= 1) & (y >= 1) & (x <= width - 2) & (y <= height - 2)
    # remap takes no map with a side of 32768 or more
    columns = 1024
    rows = -(-len(x) // columns)
    maps = [np.resize(a, rows * columns).reshape(rows, columns).astype(np.float32) for a in (x, y)]
    found = cv2.remap(level.image, maps[0], maps[1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    sampled = np.asarray(found, np.float32).reshape(-1, 3)[: len(x)] * np.array(
        [1.0, *level.scale], np.float32
    )
    return sampled, inside


def _system(
    level: Level, matrix: Matrix, points: _Points, motion: Motion, radius: np.float32
) -> tuple[Float, Float, Float, Float, NDArray[np.bool_]]:
    """Jacobian K×p, residual K, weight K, symmetric gradient K×2 (per frame pixel), and who is inside."""
    sampled, inside = _sample(level, matrix, points)
    linear = matrix[:2, :2].astype(np.float32)  # ∇(F∘W) = Aᵀ ∇F; a bracket's tilt does not matter here
    gradient = (0.5 * (points.value[:, 1:] + sampled[:, 1:] @ linear)).astype(np.float32)
    error = sampled[:, 0] - points.value[:, 0]
    scale = 1.4826 * np.median(np.abs(error[inside])[::4]) + 1e-6 if inside.any() else 1.0
    weight = np.where(inside, 1.0 / (1.0 + (error / (2.4 * scale)) ** 2), 0.0).astype(np.float32)
    u, v, gx, gy = points.u, points.v, gradient[:, 0] * radius, gradient[:, 1] * radius
    rows = [gx, gy, gx * u + gy * v, gy * u - gx * v, gx * u - gy * v, gx * v + gy * u]
    if motion == "homography":
        inward = gx * u + gy * v
        rows += [-u * inward, -v * inward]
    return np.stack(rows[: len(MOTIONS[motion])], axis=1), error, weight, gradient, inside


def _refine(
    frame: Level, reference: Level, matrix: Matrix, motion: Motion, size: tuple[int, int]
) -> tuple[Matrix, float]:
    """Gauss–Newton on one level: the matrix, unchanged where it only got worse, and its correlation."""
    points = _points(reference, size)
    centre, radius = _centre_and_radius(size)
    normalise = np.array(
        [[1 / radius, 0, -centre[0] / radius], [0, 1 / radius, -centre[1] / radius], [0, 0, 1]]
    )
    restore = np.linalg.inv(normalise)
    start, before = matrix, _agreement(frame, matrix, points)
    for _ in range(MAX_STEPS):
        jacobian, error, weight, _, inside = _system(frame, matrix, points, motion, radius)
        if inside.mean() < MIN_OVERLAP:
            return start, before
        weighted = jacobian * weight[:, None]
        normal = (weighted.T @ jacobian).astype(np.float64)
        normal += np.eye(len(normal)) * (1e-5 * np.trace(normal) / len(normal) + 1e-12)
        delta = -np.linalg.solve(normal, (weighted.T @ error).astype(np.float64))
        update = restore @ (np.eye(3) + np.tensordot(delta, MOTIONS[motion], axes=1)) @ normalise
        matrix = matrix @ update
        matrix = matrix / matrix[2, 2]
        moved = displacement(update, size)
        if not moved < 0.5 * max(size):
            return start, before
        if moved * reference.scale[0] < CONVERGED:
            break
    after = _agreement(frame, matrix, points)
    return (matrix, after) if after >= before else (start, before)


def _measure(frame: Proxy, reference: Proxy, matrix: Matrix, motion: Motion, judge: int) -> Fit:
    """Quality of `matrix`: correlation, what each cell of the reference would still move, and its error."""
    level = reference.levels[0]
    points = _points(level, reference.size)
    _, radius = _centre_and_radius(reference.size)
    jacobian, error, weight, gradient, inside = _system(frame.levels[0], matrix, points, motion, radius)
    count = CELLS * CELLS

    def per_cell(values: Float) -> NDArray[np.float64]:
        return np.bincount(points.cell, weights=values, minlength=count)[:count].astype(np.float64)

    gx, gy = gradient[:, 0], gradient[:, 1]
    xx, xy, yy = per_cell(weight * gx * gx), per_cell(weight * gx * gy), per_cell(weight * gy * gy)
    xe, ye = per_cell(weight * gx * error), per_cell(weight * gy * error)
    det = xx * yy - xy * xy
    small = 0.5 * (xx + yy - np.sqrt((xx - yy) ** 2 + 4 * xy * xy))  # lesser eigenvalue: a cell with corners
    keep = (small > 0.2 * np.median(small)) & (det > 0)
    dx = (yy * xe - xy * ye)[keep] / det[keep]
    dy = (xx * ye - xy * xe)[keep] / det[keep]
    residual = float(np.median(np.hypot(dx, dy))) if keep.any() else float("inf")
    scores = np.stack([per_cell(weight * error * column) for column in jacobian.T], axis=1)
    normal = (jacobian * weight[:, None]).T.astype(np.float64) @ jacobian
    inverse = np.linalg.pinv(normal)
    spread = _corner_error(inverse @ (scores.T @ scores) @ inverse, motion, reference.size)
    ecc = correlation(frame, reference, matrix, judge)
    return Fit(matrix, ecc, residual, float(inside.mean()), spread)


def _corner_error(covariance: NDArray[np.float64], motion: Motion, size: tuple[int, int]) -> float:
    """Standard error of the displacement at the worst corner, from the covariance of the parameters."""
    _, radius = _centre_and_radius(size)
    worst = 0.0
    for u, v in ((-1, -1), (1, -1), (-1, 1), (1, 1)):
        corner = np.array([u * size[0] / (2 * radius), v * size[1] / (2 * radius), 1.0])
        moves = MOTIONS[motion] @ corner  # p×3
        moves = (moves[:, :2] - corner[:2] * moves[:, 2:]) * radius
        worst = max(worst, float(np.trace(moves.T @ covariance @ moves)))
    return math.sqrt(worst)
