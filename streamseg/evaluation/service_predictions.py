"""Predictions that a running service publishes for the images of a dataset.

    images → folder → Service → loopback → Subscriber → COCO results, panoptic quality

A live service drops late results: its publisher queues at most ``RESULTS_WAITING`` per source (the
sockets' queues are longer). Each service therefore gets that many images, so that it can't drop
one, however slow the network thread or the subscriber is. Every image must still come back in
exactly one message, otherwise the evaluation fails.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import msgspec

from streamseg.client import Received, connect
from streamseg.config import (
    Config,
    PublishConfig,
    SourceConfig,
    Thresholds,
    TrackerConfig,
    WorkerConfig,
)
from streamseg.datasets import AnnotatedImage, Dataset, load_image
from streamseg.errors import OutputError, StreamsegError
from streamseg.evaluation.predictions import PredictionCollector, Predictions
from streamseg.models.base import Segmenter
from streamseg.pipeline.summary import Progress
from streamseg.service.service import Service
from streamseg.sinks.zmq.publisher import RESULTS_WAITING

IMAGES_PER_SERVICE = RESULTS_WAITING
"""Images that one service processes."""
TIMEOUT = 600.0
"""Maximum time without a result, in seconds; a batch of a large model takes minutes on a CPU."""
SOURCE = "images"


def predict_through_service(
    model: Segmenter, dataset: Dataset, thresholds: Thresholds, *, batch: int, progress: Progress
) -> Predictions:
    """Return the predictions that a service with ``model`` publishes for a dataset's images.

    They equal those of :func:`~streamseg.evaluation.predictions.predict_dataset`: bit for bit with
    one image per batch, and up to float noise with more, since batches may begin elsewhere.

    Args:
        model: the model.
        dataset: the dataset; its images are read by the service.
        thresholds: the service's thresholds; ``class_agnostic_iou: auto`` means none here.
        batch: maximum number of images in a forward pass, limited to ``IMAGES_PER_SERVICE``.
        progress: called with (dataset name, images done, images in total).

    Raises:
        DataError: an image can't be read or differs in size from its annotations, or model and
            dataset have no class in common.
        OutputError: the images can't be put into a temporary folder.
        StageError: the service failed.
        ReceiveTimeout: no result was received within ``TIMEOUT``.
        StreamsegError: there was no message for an image, or more than one.
    """
    collector = PredictionCollector(model, dataset)
    done = 0
    for start in range(0, len(dataset.images), IMAGES_PER_SERVICE):
        chunk = dataset.images[start : start + IMAGES_PER_SERVICE]
        with _image_folder(chunk) as (folder, images):
            config = _make_config(folder, thresholds, min(batch, IMAGES_PER_SERVICE))
            service = Service(config, model)
            with closing(_receive_images(service, images, dataset.name)) as pairs:
                for image, received in pairs:
                    collector.add(image, received.instances, received.segments)
                    done += 1
                    progress(dataset.name, done, len(dataset.images))
    return collector.predictions()


def _make_config(folder: Path, thresholds: Thresholds, batch: int) -> Config:
    """Return the config of a service on loopback that waits for its subscriber."""
    if thresholds.class_agnostic_iou == "auto":
        thresholds = msgspec.structs.replace(thresholds, class_agnostic_iou=None)
    return Config(
        sources=(SourceConfig(url=str(folder), name=SOURCE),),
        thresholds=thresholds,
        worker=WorkerConfig(max_batch=batch),
        tracker=TrackerConfig(enabled=False),
        publish=PublishConfig(bind="tcp://127.0.0.1:*", wait_subscribers=1),
    )


def _receive_images(
    service: Service, images: Mapping[str, AnnotatedImage], dataset: str
) -> Generator[tuple[AnnotatedImage, Received], None, None]:
    """Run a service and yield each image with its message, in the order of arrival.

    Args:
        service: a service of the images, not yet started.
        images: the images by their file names in the service's folder.
        dataset: name of the dataset, for errors.
    """
    missing = dict(images)
    with closing(_receive_messages(service)) as messages:
        for received in messages:
            image = missing.pop(received.item or "", None)
            if image is None:
                raise StreamsegError(
                    f"{dataset}: more than one message for {received.item} was received"
                )
            if received.size != image.size:
                load_image(image)  # raises the error about the size
            yield image, received
    for image in missing.values():
        load_image(image)  # raises the error of an image that can't be read
    if missing:
        account = service.summary().sources[0].account
        reasons = {**account.dropped, **account.failed}
        counts = ", ".join(f"{reason}: {count}" for reason, count in reasons.items())
        first = next(iter(missing.values()))
        raise StreamsegError(
            f"{dataset}: no message was received for {len(missing)} of {len(images)} images"
            f"{f' ({counts})' if counts else ''}; the first is image {first.id}"
        )


def _receive_messages(service: Service) -> Generator[Received, None, None]:
    """Start a service, yield everything it publishes, and wait until it has ended."""
    service.start()
    end = service.abort
    try:
        with connect(service.endpoints["masks"], [SOURCE], timeout=TIMEOUT) as subscriber:
            yield from subscriber
        end = service.stop
    finally:
        end()
        service.wait()


@contextmanager
def _image_folder(
    images: Sequence[AnnotatedImage],
) -> Iterator[tuple[Path, Mapping[str, AnnotatedImage]]]:
    """Put images into a temporary folder in their order; yield it and the images by file name."""
    # The extension only marks them as images: the decoder is chosen by content.
    by_name = {f"{number:06}.png": image for number, image in enumerate(images)}
    try:
        temporary = TemporaryDirectory(prefix="streamseg-", ignore_cleanup_errors=True)
    except OSError as error:
        raise OutputError(f"can't make a temporary folder: {error}: set TMPDIR") from None
    with temporary as path:
        folder = Path(path)
        for name, image in by_name.items():
            _put_image(image, folder / name)
        yield folder, by_name


def _put_image(image: AnnotatedImage, path: Path) -> None:
    """Create a link to the image's file at ``path``, or a PNG of a generated image."""
    try:
        if isinstance(image.file, Path) and image.file.is_file():
            path.symlink_to(image.file.absolute())
            return
        pixels = load_image(image)  # raises the error about a missing file
        path.write_bytes(cv2.imencode(".png", pixels[..., ::-1])[1].tobytes())
    except OSError as error:
        raise OutputError(f"{path}: can't be written: {error.strerror}") from None
