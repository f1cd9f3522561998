"""What a search found when there is more than one objective: the front, and how much of the possible it covers."""

from __future__ import annotations

from collections.abc import Sequence

Point = tuple[float, ...]
"""One value an objective, all to be minimised."""


def front(points: Sequence[Point]) -> list[int]:
    """Places of the points that no other point beats.

    A point beats another when it is nowhere worse and somewhere better; equal points all stay.

    Args:
        points: Any number, of equal length.

    Returns:
        Places in ``points``, sorted by the first value, then the others.

    Example:
        >>> front([(1, 3), (2, 2), (2, 3), (3, 1)])
        [0, 1, 3]
    """
    kept: list[int] = []
    # In this order a point can only be beaten by one before it, and by one that is kept if by any.
    for index in sorted(range(len(points)), key=lambda i: (points[i], i)):
        point = points[index]
        if not any(_beats(points[other], point) for other in kept):
            kept.append(index)
    return kept


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Volume between a reference point and the points that are better than it everywhere.

    By slices along the last objective (Fonseca, Paquete, Lopez-Ibanez 2006, without their bookkeeping): exact, and for
    the at most three objectives of a study fast.

    Args:
        points: To be minimised.
        reference: A point that is worse in everything; what does not beat it adds nothing.

    Example:
        >>> hypervolume([(1.0, 2.0), (2.0, 1.0)], (3.0, 3.0))
        3.0
    """
    inside = [point for point in points if all(a < b for a, b in zip(point, reference, strict=True))]
    if not inside:
        return 0.0
    if len(reference) == 1:
        return reference[0] - min(point[0] for point in inside)
    ordered = sorted({inside[i] for i in front(inside)}, key=lambda point: point[-1])
    if len(reference) == 2:
        return _area(ordered, reference)
    total = 0.0
    for count, point in enumerate(ordered, 1):
        top = ordered[count][-1] if count < len(ordered) else reference[-1]
        if top > point[-1]:
            total += (top - point[-1]) * hypervolume([p[:-1] for p in ordered[:count]], reference[:-1])
    return total


def box(points: Sequence[Point]) -> tuple[Point, Point]:
    """The best and the worst value of each objective, over all points; the worst a tenth of the range further out.

    So that the ends of a front count, too.

    Args:
        points: At least one.
    """
    best = tuple(min(values) for values in zip(*points, strict=True))
    worst = tuple(max(values) for values in zip(*points, strict=True))
    out = [(high - low) / 10 or abs(high) / 10 or 1.0 for low, high in zip(best, worst, strict=True)]
    return best, tuple(high + more for high, more in zip(worst, out, strict=True))


def share(points: Sequence[Point], best: Point, reference: Point) -> float:
    """Hypervolume as a share of the box between the best and a reference point, 0 to 1."""
    whole = 1.0
    for low, high in zip(best, reference, strict=True):
        whole *= high - low
    return hypervolume(points, reference) / whole


def _beats(a: Point, b: Point) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


def _area(ordered: Sequence[Point], reference: Point) -> float:
    """Two objectives: ``ordered`` ascends in the second, so it descends in the first."""
    total, right = 0.0, reference[0]
    tops = [*(point[1] for point in ordered[1:]), reference[1]]
    for point, top in zip(ordered, tops, strict=True):
        right = min(right, point[0])
        total += (reference[0] - right) * (top - point[1])
    return total
