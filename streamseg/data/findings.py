"""What is wrong with a dataset: each fault with its place, and all of them together.

A reader goes on where it can, so that one pass finds every fault. Whether any is too many is for
whoever asked: :func:`~streamseg.data.opening.open_dataset` refuses a dataset with a single one,
:func:`~streamseg.data.check.check` lists them.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault of a dataset; as text, one line with everything in it.

    Attributes:
        dataset: its name.
        image_id: the picture's id, None where the fault isn't one picture's.
        annotation_id: the annotation's id, None where the fault isn't one annotation's. In
            formats of PNGs, the segment's id.
        what: what is wrong, in one line.
    """

    dataset: str
    image_id: int | None
    annotation_id: int | None
    what: str

    @property
    def located(self) -> str:
        """Where it is in the dataset, and what: ``image 12, annotation 34: …``."""
        ids = (("image", self.image_id), ("annotation", self.annotation_id))
        place = ", ".join(f"{kind} {number}" for kind, number in ids if number is not None)
        return f"{place}: {self.what}" if place else self.what

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

    def add(self, what: str, image: int | None = None, annotation: int | None = None) -> None:
        """Note a fault, with the ids of an image and an annotation where it has them."""
        self.problems.append(Problem(self.dataset, image, annotation, what))
