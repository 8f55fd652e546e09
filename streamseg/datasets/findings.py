"""Problems of a dataset: each with its place and reason, and counts by reason.

A reader goes on where it can, so that one pass finds every problem, and leaves out what has one.
Whether any is too many is the caller's decision: see
:func:`~streamseg.datasets.opening.open_dataset` and :func:`~streamseg.datasets.check.check`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

Id: TypeAlias = int | str
"""Id of an image or annotation: a whole number, or text where the dataset has text."""

FIRST_IDS = 5
"""Places that a summary names for each reason."""


class Fault(NamedTuple):
    """What is wrong with one row.

    Attributes:
        reason: the kind of fault, the same text for all faults of the kind.
        what: the fault with its numbers and names, one line.
    """

    reason: str
    what: str


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault of a dataset; as text, one line with everything in it.

    Attributes:
        dataset: its name.
        image_id: the image's id, None where the fault isn't one image's.
        annotation_id: the annotation's id, None where the fault isn't one annotation's. In
            formats of PNGs, the segment's id.
        what: what is wrong, in one line.
        reason: the kind of fault, for counting.
    """

    dataset: str
    image_id: Id | None
    annotation_id: Id | None
    what: str
    reason: str = field(default="", compare=False)

    @property
    def place(self) -> str:
        """Where it is in the dataset, ``image 12, annotation 34``; empty for a whole dataset."""
        ids = (("image", self.image_id), ("annotation", self.annotation_id))
        return ", ".join(f"{kind} {number}" for kind, number in ids if number is not None)

    @property
    def located(self) -> str:
        """Where it is in the dataset, and what: ``image 12, annotation 34: …``."""
        return f"{self.place}: {self.what}" if self.place else self.what

    def __str__(self) -> str:
        return f"{self.dataset}: {self.located}"


@dataclass(frozen=True, slots=True)
class Findings:
    """The problems of one dataset, as they are found.

    Attributes:
        dataset: its name.
        problems: in the order in which they were found.
    """

    dataset: str
    problems: list[Problem] = field(default_factory=list)

    def add(self, fault: Fault, image: Id | None = None, annotation: Id | None = None) -> None:
        """Note a fault, with the ids of an image and an annotation where it has them."""
        problem = Problem(self.dataset, image, annotation, fault.what, fault.reason)
        self.problems.append(problem)


@dataclass(frozen=True, slots=True)
class ReasonCount:
    """How many problems have one reason.

    Attributes:
        reason: the kind of fault.
        count: how many there are.
        first: the places of the first ones, at most ``FIRST_IDS``.
    """

    reason: str
    count: int
    first: tuple[str, ...]

    def __str__(self) -> str:
        more = ", …" if self.count > len(self.first) else ""
        return f"{self.count} x {self.reason}: {'; '.join(self.first)}{more}"


def count_by_reason(problems: Iterable[Problem]) -> list[ReasonCount]:
    """Problems counted by reason, the most frequent reason first."""
    groups: dict[str, list[Problem]] = {}
    for problem in problems:
        groups.setdefault(problem.reason, []).append(problem)
    return [
        ReasonCount(
            reason, len(group), tuple(each.place or each.what for each in group[:FIRST_IDS])
        )
        for reason, group in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]


def skipped_rows_summary(dataset: str, problems: Sequence[Problem]) -> Iterator[str]:
    """The lines that report what was left out of a dataset; none where nothing was."""
    if problems:
        rows = "1 row" if len(problems) == 1 else f"{len(problems)} rows"
        yield f"{dataset}: skipped {rows} with problems (data.problems: skip):"
        yield from (f"  {each}" for each in count_by_reason(problems))


def skipped_rows_counts(problems: Sequence[Problem]) -> list[dict[str, Any]]:
    """The same as values for JSON."""
    return [
        {"reason": each.reason, "count": each.count, "first": list(each.first)}
        for each in count_by_reason(problems)
    ]
