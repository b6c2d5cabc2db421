"""Grounding of phrases: intersection over union of boxes, and Acc@0.5 as RefCOCO, RefCOCO+ and RefCOCOg report it."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlm.errors import DataError


def box_iou(predictions: ArrayLike, targets: ArrayLike) -> NDArray[np.float32]:
    """Overlap of each predicted box with its own target, with OFA's arithmetic.

    `intersection / (area + area - intersection + 1e-6)`, in float32 as OFA computes it: in float64 the 1e-6 would push
    large boxes that overlap by exactly one half below the threshold. Boxes that only touch, and boxes whose corners are
    in the wrong order, overlap by 0.

    Args:
        predictions: `[boxes, 4]`, each x0, y0, x1, y1 in pixels: the upper left corner and the lower right one.
        targets: the same.

    Returns:
        `float32[boxes]`, 0 to 1.

    Raises:
        DataError: the two are not lists of as many boxes of four numbers each, or a number is not finite.
    """
    ours, theirs = _boxes(predictions, "predictions"), _boxes(targets, "targets")
    if len(ours) != len(theirs):
        raise DataError(f"{len(ours)} predicted boxes for {len(theirs)} targets; give one box for each target")
    # min(x1) - max(x0) and the same for y: positive only where the boxes overlap, and both have their corners in order
    sides = np.minimum(ours[:, 2:], theirs[:, 2:]) - np.maximum(ours[:, :2], theirs[:, :2])  # [boxes, 2]
    intersection = np.where((sides > 0).all(1), sides[:, 0] * sides[:, 1], np.float32(0))
    union = _area(ours) + _area(theirs) - intersection + np.float32(1e-6)
    return np.divide(intersection, union, out=np.zeros_like(union), where=intersection > 0)


def grounding_hits(predictions: ArrayLike, targets: ArrayLike, threshold: float = 0.5) -> NDArray[np.bool_]:
    """Which boxes overlap their targets by at least `threshold`: `bool[boxes]`, True at a hit. Raises as `box_iou`."""
    iou = box_iou(predictions, targets)
    return (iou >= threshold) & (iou > 0)


def grounding_accuracy(predictions: ArrayLike, targets: ArrayLike, threshold: float = 0.5) -> float:
    """Share of phrases whose box is a hit, a fraction; Acc@0.5 unless told otherwise.

    Raises:
        DataError: as `box_iou`, or there are no boxes.
    """
    hits = grounding_hits(predictions, targets, threshold)
    if not len(hits):
        raise DataError("no boxes to score; the predictions are empty")
    return float(hits.mean())


def _boxes(values: ArrayLike, name: str) -> NDArray[np.float32]:
    try:
        boxes = np.asarray(values, np.float32)
    except ValueError:  # rows of different lengths
        raise DataError(f"{name}: not all boxes have four numbers; give x0, y0, x1, y1 for each") from None
    boxes = boxes.reshape(0, 4) if boxes.size == 0 else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise DataError(f"{name} has shape {list(boxes.shape)}; boxes are [boxes, 4]: x0, y0, x1, y1")
    if not np.isfinite(boxes).all():
        row = int((~np.isfinite(boxes)).any(1).argmax())
        raise DataError(f"{name}[{row}] is {boxes[row].tolist()}; coordinates must be finite numbers")
    return boxes


def _area(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.prod(boxes[:, 2:] - boxes[:, :2], axis=1, dtype=np.float32)
