"""Errors of a network in the words of its task: boxes, text, labels, decisions, meanings.

Every measure is an error: 0 where the results are equal, and wrong by the task above its limit.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

BOX_LIMIT = 0.25
"""1 - IoU: COCO's stricter matching asks for an IoU of 0.75."""
SCORE_LIMIT = 0.1
"""A score that moves by more than a tenth crosses thresholds that users set. Also the width of the band above the
detection threshold in which an object may be found by one network and not by the other."""
MASK_LIMIT = 0.1
"""1 - IoU of text masks: a line loses a tenth of its height or of its length, about half a letter."""
TEXT_LIMIT = 0.01
"""One wrong character in a hundred, less than what recognisers of print get wrong themselves."""
PROBABILITY_LIMIT = 0.1
DECISION_LIMIT = 0.02
"""One decision in fifty: speech detectors hesitate for a frame at the start and the end of each sentence."""
MEAN_PROBABILITY_LIMIT = 0.02
COSINE_LIMIT = 0.02
"""1 - cosine of two embeddings of one text; different texts of one topic are ten times as far apart."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One error of a task: its name, its value (0: no error), and its limit, above which the network is wrong."""

    name: str
    value: float
    limit: float

    @property
    def is_wrong(self) -> bool:
        """Return whether the error is above its limit or not a number."""
        return not self.value <= self.limit


@dataclass(frozen=True, slots=True)
class Detections:
    """Objects found in one picture.

    Args:
        boxes: left, top, right and bottom in pixels, (objects, 4).
        scores: 0 to 1, (objects,).
        labels: class of each object, (objects,).
    """

    boxes: Array
    scores: Array
    labels: Array

    def above(self, score: float) -> "Detections":
        """Return the objects with at least this score."""
        kept = self.scores >= score
        return Detections(self.boxes[kept], self.scores[kept], self.labels[kept])


def box_overlaps(one: Array, other: Array) -> Array:
    """Return the IoU of each box of `one`, (n, 4), with each box of `other`, (m, 4), as an array (n, m)."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(-1) for boxes in (one, other)]
    union = areas[0][:, None] + areas[1][None] - shared
    return np.asarray(shared / np.maximum(union, 1e-12))


def suppress(detections: Detections, overlap: float) -> Detections:
    """Return the objects that greedy non-maximum suppression keeps, best score first.

    Args:
        detections: all objects.
        overlap: IoU with a better object above which an object is dropped.
    """
    order = np.argsort(-detections.scores, kind="stable")
    kept: list[int] = []
    for index in order:
        boxes = detections.boxes[kept]
        if not kept or box_overlaps(detections.boxes[index : index + 1], boxes).max() <= overlap:
            kept.append(int(index))
    return Detections(detections.boxes[kept], detections.scores[kept], detections.labels[kept])


def detection_error(reference: Sequence[Detections], found: Sequence[Detections], threshold: float) -> list[Measure]:
    """Compare the objects that two networks found in the same pictures.

    An object counts where its score is at least `threshold + SCORE_LIMIT`. It must have a partner of its class above
    the threshold among the other network's objects; without one, its box error is 1 and its score error its score.

    Returns:
        the largest 1 - IoU, and the largest difference of scores, over all objects of both networks.
    """
    pairs = [pair for one, other in zip(reference, found, strict=True) for pair in ((one, other), (other, one))]
    errors = [_partner_errors(one.above(threshold + SCORE_LIMIT), other.above(threshold)) for one, other in pairs]
    boxes, scores = np.concatenate(errors, axis=1) if errors else np.zeros((2, 0))
    return [
        Measure("box", float(boxes.max(initial=0.0)), BOX_LIMIT),
        Measure("score", float(scores.max(initial=0.0)), SCORE_LIMIT),
    ]


def _partner_errors(objects: Detections, others: Detections) -> Array:
    """Return 1 - IoU and the difference of scores of each object and its partner, (2, objects)."""
    overlaps = box_overlaps(objects.boxes, others.boxes) * (objects.labels[:, None] == others.labels[None])
    if not overlaps.size:
        return np.stack([np.ones(len(objects.scores)), objects.scores])
    best = overlaps.argmax(1)
    overlap = overlaps[np.arange(len(best)), best]
    partner_scores = np.where(overlap > 0, others.scores[best], 0.0)
    return np.stack([1 - overlap, np.abs(objects.scores - partner_scores)])


def mask_error(reference: Sequence[Array], found: Sequence[Array]) -> list[Measure]:
    """Return 1 - IoU of boolean masks, over all pictures together."""
    shared = sum(int((one & other).sum()) for one, other in zip(reference, found, strict=True))
    union = sum(int((one | other).sum()) for one, other in zip(reference, found, strict=True))
    return [Measure("mask", 1 - shared / union if union else 0.0, MASK_LIMIT)]


def text_error(reference: Sequence[str], found: Sequence[str]) -> list[Measure]:
    """Return the edits between pairs of texts for each character of the reference."""
    edits = sum(edit_distance(one, other) for one, other in zip(reference, found, strict=True))
    return [Measure("characters", edits / max(sum(map(len, reference)), 1), TEXT_LIMIT)]


def edit_distance(one: str, other: str) -> int:
    """Return how many characters must be inserted, deleted or replaced (Levenshtein 1966).

    >>> edit_distance("kitten", "sitting")
    3
    """
    row = list(range(len(other) + 1))
    for index, character in enumerate(one, 1):
        previous, row = row, [index]
        for column, other_character in enumerate(other, 1):
            replaced = previous[column - 1] + (character != other_character)
            row.append(min(previous[column] + 1, row[-1] + 1, replaced))
    return row[-1]


def collapse_repeats(labels: Sequence[int], blank: int = 0) -> list[int]:
    """Return the labels of a CTC alignment: repeats become one, blanks are dropped (Graves et al. 2006).

    >>> collapse_repeats([0, 3, 3, 0, 3, 5])
    [3, 3, 5]
    """
    before = [blank, *labels]
    return [label for label, last in zip(labels, before, strict=False) if label not in (blank, last)]


def label_error(reference: Array, found: Array) -> list[Measure]:
    """Compare probabilities of classes, (items, classes): share of other labels, largest change of the label's.

    Another label counts where the reference prefers its own by more than a tenth: of two labels that are about as
    likely, one is as right as the other.
    """
    rows = np.arange(len(reference))
    labels, others = reference.argmax(-1), found.argmax(-1)
    lead = reference[rows, labels] - reference[rows, others]
    change = np.abs(found[rows, labels] - reference[rows, labels])
    return [
        Measure("labels", float((lead > PROBABILITY_LIMIT).mean()), 0.0),
        Measure("probability", float(change.max()), PROBABILITY_LIMIT),
    ]


def decision_error(reference: Array, found: Array, threshold: float) -> list[Measure]:
    """Compare probabilities over time: share of other decisions, and mean change of the probability."""
    decisions = (reference >= threshold) != (found >= threshold)
    return [
        Measure("decisions", float(decisions.mean()), DECISION_LIMIT),
        Measure("probability", float(np.abs(reference - found).mean()), MEAN_PROBABILITY_LIMIT),
    ]


def embedding_error(reference: Array, found: Array) -> list[Measure]:
    """Compare embeddings of unit length, (texts, features): largest 1 - cosine, share of other nearest neighbours.

    Another neighbour counts where the reference has its own nearer by more than `COSINE_LIMIT`.
    """
    similarity = reference @ reference.T
    rows = np.arange(len(reference))
    lead = similarity[rows, _neighbours(reference)] - similarity[rows, _neighbours(found)]
    return [
        Measure("cosine", float(1 - (reference * found).sum(-1).min()), COSINE_LIMIT),
        Measure("neighbours", float((lead > COSINE_LIMIT).mean()), 0.0),
    ]


def _neighbours(embeddings: Array) -> Array:
    similarity = embeddings @ embeddings.T
    np.fill_diagonal(similarity, -np.inf)
    return np.asarray(similarity.argmax(1))


def item_error(reference: Sequence[Hashable], found: Sequence[Hashable], limit: float = TEXT_LIMIT) -> list[Measure]:
    """Return the share of items (tags, notes, pairs of atoms) of the reference that differ."""
    different = [one != other for one, other in zip(reference, found, strict=True)]
    return [Measure("items", float(np.mean(different)), limit)]
