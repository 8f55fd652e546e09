"""Live service: wiring, sources at run time, life cycle, HTTP API and systemd."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamseg.config import Config
    from streamseg.service.service import Service


@contextmanager
def serve(config: Config | Mapping[str, Any] | str | os.PathLike[str]) -> Iterator[Service]:
    """Run a service inside another program, from the start of the ``with`` block to its end.

    ``service.endpoints`` has its addresses, ``service.sources`` its sources, and
    ``service.wait()`` waits until its recordings have ended. The HTTP API, signals and systemd
    belong to ``streamseg serve``: there are none here.

    Args:
        config: config, the same as a mapping, or the path of a YAML file.

    Raises:
        StreamsegError: the config is wrong, or the service can't be started.
        StageError: on leaving the block: a stage failed.
    """
    from streamseg.config import Config, load, validate
    from streamseg.service.service import Service

    if isinstance(config, Mapping):
        config = validate(dict(config), "the config")
    elif not isinstance(config, Config):
        config = validate(load(Path(config)), str(config))
    service = Service(config)
    service.start()
    try:
        yield service
    except BaseException:
        service.abort()  # the exception of the block is the one to report
        raise
    service.stop()
    service.wait()
