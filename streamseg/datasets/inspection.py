"""What can only be found by opening the images and the PNGs of a dataset.

Every image is decoded, with the reader that training uses: what passes can be trained on. An image
is what it is upright. Where a file's EXIF orientation turns it and the annotations are for the
image as it is stored, that shows in the size and is reported; where the size stays the same
(mirrored, upside down, square) nothing can tell, and it is taken for right.
"""

from __future__ import annotations

from collections.abc import Collection

from streamseg.datasets.dataset import AnnotatedImage, Dataset, PngSegment
from streamseg.datasets.findings import Fault, Findings, Id, Problem
from streamseg.datasets.labels import load_labels, regions
from streamseg.datasets.loading import load_image
from streamseg.errors import DataError, TooLargeError


def inspect(dataset: Dataset) -> list[Problem]:
    """Open every image and PNG of a dataset; return what is wrong with them.

    A problem without an annotation's id is one of the whole image.
    """
    findings = Findings(dataset.name)
    unsound: dict[Id, set[Id]] = {}
    for problem in dataset.skipped:
        if problem.image_id is not None and problem.annotation_id is not None:
            unsound.setdefault(problem.image_id, set()).add(problem.annotation_id)
    for image in dataset.images:
        _inspect_png(image, unsound.get(image.id, set()), findings)
        _inspect_image(image, findings)
    return findings.problems


def _inspect_png(image: AnnotatedImage, skipped: Collection[Id], findings: Findings) -> None:
    """Compare what a panoptic PNG holds with the segments that the JSON says are in it."""
    segments = [
        each.segmentation
        for each in (*image.annotations, *image.stuff)
        if isinstance(each.segmentation, PngSegment)
    ]
    if not segments:
        return
    png = segments[0].path  # all are of one PNG
    try:
        labels = load_labels(png)
    except DataError as error:
        findings.add(Fault("PNG of segments can't be read", str(error)), image.id)
        return
    if labels.shape != image.size:
        (height, width), (rows, columns) = image.size, labels.shape
        what = f"{png} is {columns} x {rows}, the picture {width} x {height}"
        findings.add(Fault("PNG of segments is of another size", what), image.id)
    present = {int(value) for value in regions(labels)[0]}
    listed = {segment.value for segment in segments}
    for value in sorted(present - listed - set(skipped)):
        what = f"{png} has pixels of {value}, which no segment is"
        findings.add(Fault("PNG has pixels of no segment", what), image.id)
    for value in sorted(listed - present):
        what = f"the segment has no pixels in {png}"
        findings.add(Fault("segment has no pixels", what), image.id, value)


def _inspect_image(image: AnnotatedImage, findings: Findings) -> None:
    try:
        load_image(image)
    except DataError as error:
        findings.add(Fault("image can't be used", str(error)), image.id)
    except TooLargeError as error:
        findings.add(Fault("image is too large", str(error)), image.id)
