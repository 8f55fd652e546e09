"""What is served is what was measured: a dataset's pictures through a real service.

    pictures → folder → Service → loopback → Subscriber → COCO results, panoptic quality

A live service drops what is late: its publisher keeps ``RESULTS_WAITING`` results of a source, and
the sockets' queues are longer. So the pictures go through in pieces of that many, each through a
service of its own: nothing can be late, however slow the network thread or the subscriber is. All
the same every picture must come to exactly one message, or there is no result at all.
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
from streamseg.evaluation.predictions import Collector, Predictions
from streamseg.models.base import Segmenter
from streamseg.pipeline.summary import Progress, Summary
from streamseg.service.service import Service
from streamseg.sinks.zmq.publisher import RESULTS_WAITING

PIECE = RESULTS_WAITING
"""Pictures that one service is given."""
SILENCE = 600.0
"""Seconds without a result after which a service is given up: a large model's batch takes some."""
SOURCE = "pictures"


def predict_through_service(
    model: Segmenter, dataset: Dataset, thresholds: Thresholds, *, batch: int, progress: Progress
) -> Predictions:
    """What a service with ``model`` publishes for every picture of ``dataset``.

    It is what :func:`~streamseg.evaluation.predictions.predict_dataset` finds: to the last bit with
    one picture in a forward, to float noise with more, since batches may begin elsewhere.

    Args:
        model: what is served.
        dataset: its pictures are read by the service.
        thresholds: the service's; ``class_agnostic_iou: auto`` is none, as it is there.
        batch: pictures in a forward, at most; never more than ``PIECE`` come together.
        progress: told how far it is.

    Raises:
        DataError: a picture can't be read or has another size than its annotations are for, or
            the model knows none of the classes.
        OutputError: the pictures can't be laid out for the service.
        StageError: the service failed.
        ReceiveTimeout: it went silent.
        StreamsegError: a picture came to no message, or to more than one.
    """
    found = Collector(model, dataset)
    done = 0
    for start in range(0, len(dataset.images), PIECE):
        piece = dataset.images[start : start + PIECE]
        with _folder_of(piece) as (folder, images):
            service = Service(_config(folder, thresholds, min(batch, PIECE)), model)
            with closing(_served(service, images, dataset.name)) as served:
                for image, received in served:
                    found.add(image, received.instances, received.segments)
                    done += 1
                    progress(dataset.name, done, len(dataset.images))
    return found.predictions()


def _config(folder: Path, thresholds: Thresholds, batch: int) -> Config:
    """A service of the pictures in ``folder``, on loopback, that waits for its subscriber."""
    if thresholds.class_agnostic_iou == "auto":
        thresholds = msgspec.structs.replace(thresholds, class_agnostic_iou=None)
    return Config(
        sources=(SourceConfig(url=str(folder), name=SOURCE),),
        thresholds=thresholds,
        worker=WorkerConfig(max_batch=batch),
        tracker=TrackerConfig(enabled=False),
        publish=PublishConfig(bind="tcp://127.0.0.1:*", wait_subscribers=1),
    )


def _served(
    service: Service, images: Mapping[str, AnnotatedImage], dataset: str
) -> Generator[tuple[AnnotatedImage, Received], None, None]:
    """Each picture with the message that was published for it, as they come.

    Args:
        service: of the pictures, not yet started.
        images: by the names of their files in the service's folder.
        dataset: what they are of, for errors.
    """
    missing = dict(images)
    with closing(_messages(service)) as messages:
        for received in messages:
            image = missing.pop(received.item or "", None)
            if image is None:
                raise StreamsegError(f"{dataset}: {received.item} came to more than one message")
            if received.size != image.size:
                load_image(image)  # says what is wrong with it
            yield image, received
    for image in missing.values():
        load_image(image)  # one that couldn't be read is named as it is without a service
    if missing:
        first = next(iter(missing.values()))
        raise StreamsegError(
            f"{dataset}: {len(missing)} of {len(images)} pictures came to no message"
            f"{_because(service.summary())}; the first is image {first.id}"
        )


def _messages(service: Service) -> Generator[Received, None, None]:
    """Everything that a service publishes, from its start to its end."""
    service.start()
    end = service.abort
    try:
        with connect(service.endpoints["masks"], [SOURCE], timeout=SILENCE) as subscriber:
            yield from subscriber
        end = service.stop
    finally:
        end()
        service.wait()


def _because(summary: Summary) -> str:
    """Where the service says that its frames went, if not to the subscriber."""
    account = summary.sources[0].account
    reasons = {**account.dropped, **account.failed}
    return f" ({', '.join(f'{why}: {n}' for why, n in reasons.items())})" if reasons else ""


@contextmanager
def _folder_of(
    images: Sequence[AnnotatedImage],
) -> Iterator[tuple[Path, Mapping[str, AnnotatedImage]]]:
    """A folder of pictures in their order, and each picture by its file's name; for a while."""
    # The endings say no more than that these are pictures: what is inside decides how it is read.
    named = {f"{number:06}.png": image for number, image in enumerate(images)}
    try:
        temporary = TemporaryDirectory(prefix="streamseg-", ignore_cleanup_errors=True)
    except OSError as error:
        raise OutputError(f"can't make a temporary folder: {error}: set TMPDIR") from None
    with temporary as path:
        folder = Path(path)
        for name, image in named.items():
            _put(image, folder / name)
        yield folder, named


def _put(image: AnnotatedImage, at: Path) -> None:
    """A picture's file, or a PNG of what is drawn, at ``at``."""
    try:
        if isinstance(image.picture, Path) and image.picture.is_file():
            at.symlink_to(image.picture.absolute())
            return
        pixels = load_image(image)  # of a file that isn't there, it says so
        at.write_bytes(cv2.imencode(".png", pixels[..., ::-1])[1].tobytes())
    except OSError as error:
        raise OutputError(f"{at}: can't be written: {error.strerror}") from None
