"""Dataset problems: what is wrong and where, and their counts by reason.

Readers leave out what has a problem and continue, so one pass finds every problem. The caller
decides whether problems are errors: see :func:`~streamseg.datasets.formats.open_dataset` and
:func:`~streamseg.datasets.validation.find_problems`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

Id: TypeAlias = int | str
"""Id of an image or annotation: an integer, or text where the dataset uses text ids."""

MAX_LOCATIONS = 5
"""Maximum number of locations that a summary lists per reason."""


class Fault(NamedTuple):
    """Description of a problem, before it is assigned to a dataset, image or annotation.

    Attributes:
        reason: kind of problem; the same text for all problems of this kind.
        message: one-line message with the names and numbers of this case.
    """

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Problem:
    """Problem of a dataset; ``str()`` gives one line with the dataset, location and message.

    Attributes:
        dataset: name of the dataset.
        image_id: id of the image; None if the problem is not in a single image.
        annotation_id: id of the annotation, or of the segment in formats with PNG masks; None if
            the problem is not in a single annotation.
        message: one-line message.
        reason: kind of problem, for counting.
    """

    dataset: str
    image_id: Id | None
    annotation_id: Id | None
    message: str
    reason: str = field(default="", compare=False)

    @property
    def location(self) -> str:
        """Ids of image and annotation, ``image 12, annotation 34``; empty if there are none."""
        ids = (("image", self.image_id), ("annotation", self.annotation_id))
        return ", ".join(f"{kind} {number}" for kind, number in ids if number is not None)

    @property
    def description(self) -> str:
        """Location and message: ``image 12, annotation 34: the box …``."""
        return f"{self.location}: {self.message}" if self.location else self.message

    def __str__(self) -> str:
        return f"{self.dataset}: {self.description}"


@dataclass(frozen=True, slots=True)
class ProblemReport:
    """Problems of one dataset, collected while it is read.

    Attributes:
        dataset: name of the dataset.
        problems: the problems in the order in which they were found.
    """

    dataset: str
    problems: list[Problem] = field(default_factory=list)

    def add(
        self, fault: Fault, image_id: Id | None = None, annotation_id: Id | None = None
    ) -> None:
        """Append a problem, with the ids of its image and annotation where known."""
        self.problems.append(
            Problem(self.dataset, image_id, annotation_id, fault.message, fault.reason)
        )


@dataclass(frozen=True, slots=True)
class ReasonCount:
    """Number of problems with the same reason.

    Attributes:
        reason: kind of problem.
        count: number of problems.
        first_locations: locations of the first problems, at most ``MAX_LOCATIONS``.
    """

    reason: str
    count: int
    first_locations: tuple[str, ...]

    def __str__(self) -> str:
        more = ", …" if self.count > len(self.first_locations) else ""
        return f"{self.count} x {self.reason}: {'; '.join(self.first_locations)}{more}"


def count_by_reason(problems: Iterable[Problem]) -> list[ReasonCount]:
    """Count problems by reason; the most frequent reason comes first."""
    groups: dict[str, list[Problem]] = {}
    for problem in problems:
        groups.setdefault(problem.reason, []).append(problem)
    return [
        ReasonCount(
            reason,
            len(group),
            tuple(problem.location or problem.message for problem in group[:MAX_LOCATIONS]),
        )
        for reason, group in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]


def format_skipped_rows(dataset: str, problems: Sequence[Problem]) -> Iterator[str]:
    """Yield the lines that report what was left out of a dataset; none if nothing was."""
    if problems:
        rows = "1 row" if len(problems) == 1 else f"{len(problems)} rows"
        yield f"{dataset}: skipped {rows} with problems (data.problems: skip):"
        yield from (f"  {count}" for count in count_by_reason(problems))


def count_skipped_rows(problems: Sequence[Problem]) -> list[dict[str, Any]]:
    """Return the counts of :func:`format_skipped_rows` as JSON values."""
    return [
        {"reason": each.reason, "count": each.count, "first": list(each.first_locations)}
        for each in count_by_reason(problems)
    ]
