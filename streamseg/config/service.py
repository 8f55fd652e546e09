"""Schema of the service config.

A config is one YAML file that is validated completely before anything starts: an unknown key, a
wrong type or an impossible value is a ``ConfigError`` with the path in the file and what was
expected. Only ``sources`` is required.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from streamseg.config.class_names import check_class_names
from streamseg.errors import ImpossibleValueError
from streamseg.structures.masks import MAX_PIXELS
from streamseg.structures.results import SOURCE_NAME

Fraction01: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
Positive: TypeAlias = Annotated[float, Meta(gt=0, le=sys.float_info.max)]
NotNegative: TypeAlias = Annotated[float, Meta(ge=0, le=sys.float_info.max)]
Seconds: TypeAlias = Annotated[float, Meta(gt=0, le=1e6)]
"""Timeout in seconds, at most 11 days."""
Count: TypeAlias = Annotated[int, Meta(ge=1)]
Point: TypeAlias = tuple[float, float]
MaskIoU: TypeAlias = Annotated[float, Meta(gt=0, le=1)] | Literal["auto"] | None
TopicPath: TypeAlias = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9._-]+)*\Z", max_length=100)
]
CameraOption: TypeAlias = Literal["video_size", "framerate", "input_format"]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all config sections; unknown keys are errors."""


SectionT = TypeVar("SectionT", bound=Section)


class Thresholds(Section, frozen=True, kw_only=True):
    """Filter of the instances of a frame; applied once, after the post-processing of the model.

    Attributes:
        score: minimum score.
        score_by_class: minimum score of single classes, by name; the others use ``score``.
        mask: minimum probability of a mask pixel.
        min_area: minimum area of a mask, in pixels.
        max_instances: maximum number of instances; those with the highest scores are kept.
        classes: names of the classes to keep; empty keeps all.
        class_agnostic_iou: mask IoU above which the instance with the lower score is removed,
            also if its class differs. Applied after the other thresholds, before ``max_instances``.
            ``null`` disables it; ``auto`` is the value of the model in ``serve``, ``process`` and
            ``demo``, and disables it elsewhere.
        region: corners x, y of a polygon in pixels; instances are kept if the center of their box
            is inside.
    """

    score: Fraction01 = 0.45
    score_by_class: dict[str, Fraction01] = {}
    mask: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    min_area: Annotated[int, Meta(ge=0)] = 0
    max_instances: Count = 100
    classes: tuple[str, ...] = ()
    class_agnostic_iou: MaskIoU = "auto"
    region: tuple[Point, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.region, tuple | list) and 0 < len(self.region) < 3:
            raise ImpossibleValueError("region needs at least three corners")


class ModelConfig(Section, frozen=True, kw_only=True):
    """Model, weights and device.

    Attributes:
        name: model name; see ``streamseg models``.
        weights: ``default`` (those of the registry), a path, or ``none`` (random, for tests).
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        input_size: input size in pixels; its meaning depends on the model family. None is the
            default of the model.
        precision: ``fp32``, or autocast to ``bf16`` or ``fp16``, which changes results slightly.
        class_names: classes of the weights: names in the order of the outputs (ids from 1), or
            names by category id. None uses the names in the weights file, or those of COCO.
    """

    name: str = "nanomask"
    weights: str = "default"
    device: Annotated[str, Meta(pattern=r"^(auto|cpu|cuda|cuda:\d+)$")] = "auto"
    input_size: Annotated[int, Meta(ge=32, le=4096)] | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    class_names: tuple[str, ...] | dict[int, str] | None = None

    def __post_init__(self) -> None:
        if self.class_names is not None:
            check_class_names(self.class_names)


class SourceConfig(Section, frozen=True, kw_only=True):
    """Recorded or live source of frames.

    Attributes:
        url: recorded source: video file, folder or glob of images, or ``test:`` (synthetic test
            pattern); live source: ``rtsp://``, ``rtmp://``, ``http(s)://`` (MJPEG, HLS, MPEG-TS
            and others), ``udp://``, or a camera such as ``/dev/video0``.
        name: source name in messages and files; derived from ``url`` by default.
        stride: use every n-th frame.
        max_fps: maximum frame rate, in frames per second of pts.
        start: first second to use, counted from the beginning of the recording; like ``end``, for
            recordings only.
        end: second before which to stop, counted from the beginning of the recording.
        max_pixels: maximum number of pixels of a frame.
        stream: index of the video stream, from 0; cover art is not counted.
        thresholds: thresholds of this source, instead of those of the service.
        transport: transport of RTSP media; like all options below, for live sources only.
        open_timeout: time limit for the first frame of a connection, in seconds.
        stall_after: time without a frame after which a connection is closed, in seconds.
        max_attempts: number of consecutive failed attempts after which the source has failed;
            None retries without a limit.
        user: user name, unless it is part of the url.
        password_env: environment variable that contains the password.
        password_file: file that contains only the password.
        hosts: other hosts to which HTTP redirections and playlists may lead.
        input: size, frame rate and pixel format of a camera: the V4L2 options ``video_size``,
            ``framerate`` and ``input_format``.
    """

    url: str
    name: str = ""
    stride: Count = 1
    max_fps: Positive | None = None
    start: NotNegative = 0.0
    end: Positive | None = None
    max_pixels: Count = MAX_PIXELS
    stream: Annotated[int, Meta(ge=0)] = 0
    thresholds: Thresholds | None = None
    transport: Literal["tcp", "udp"] = "tcp"
    open_timeout: Seconds = 10.0
    stall_after: Seconds = 5.0
    max_attempts: Count | None = None
    user: str = ""
    password_env: str = ""
    password_file: str = ""
    hosts: tuple[str, ...] = ()
    input: dict[CameraOption, str] = {}

    def __post_init__(self) -> None:
        if not self.url:
            raise ImpossibleValueError("url is empty")
        url = str(self.url)  # the constructor does not validate types
        if "\0" in url or ("://" in url and not url.isprintable()):
            raise ImpossibleValueError("url has a character that can't be printed")
        if self.password_env and self.password_file:
            raise ImpossibleValueError("password_env and password_file: set only one of them")
        if (self.password_env or self.password_file) and not self.user:
            raise ImpossibleValueError("a password needs a user: set user")
        if self.name and not SOURCE_NAME.fullmatch(self.name):
            raise ImpossibleValueError(
                "name: use 1 to 64 letters, digits, dots, dashes and underscores, not . or .."
            )
        if self.end is not None and self.end <= self.start:
            raise ImpossibleValueError(f"end ({self.end:g}) must be after start ({self.start:g})")


class WorkerConfig(Section, frozen=True, kw_only=True):
    """Batching of frames for the model.

    Attributes:
        max_batch: maximum number of frames per batch.
        max_wait_ms: maximum time that a batch waits for more frames, in milliseconds.
        max_age_ms: age above which frames of live sources are dropped, in milliseconds; None drops
            none.
        threads: number of CPU threads of the model; None is torch's default.
    """

    max_batch: Annotated[int, Meta(ge=1, le=256)] = 4
    max_wait_ms: NotNegative = 10.0
    max_age_ms: Positive | None = None
    threads: Count | None = None


class TrackerConfig(Section, frozen=True, kw_only=True):
    """Multi-object tracker of each source.

    Attributes:
        enabled: whether to track; otherwise all track ids are -1.
        type: name of a plug-in tracker; None for the built-in one, the only one that has the
            options below.
        lost_track_seconds: time for which a track is kept without a detection, in seconds.
        min_hits: number of frames with a detection until a track gets its id.
        high_score_threshold: minimum score of the instances that are matched first; weaker ones
            only continue tracks that were matched in the frame before.
        new_track_threshold: minimum score of an instance that starts a track.
        class_vote: number of latest observations of a track that vote for its class, weighted by
            score. A track then continues when the model changes the class of an object. 0
            publishes the class of each instance, and tracks have one class.
    """

    enabled: bool = True
    type: str | None = None
    lost_track_seconds: NotNegative = 2.0
    min_hits: Count = 2
    high_score_threshold: Fraction01 = 0.45
    new_track_threshold: Fraction01 = 0.5
    class_vote: Annotated[int, Meta(ge=0, le=1000)] = 30

    def __post_init__(self) -> None:
        if self.high_score_threshold > self.new_track_threshold:
            raise ImpossibleValueError(
                f"high_score_threshold ({self.high_score_threshold:g}) must not exceed "
                f"new_track_threshold ({self.new_track_threshold:g})"
            )


class PublishConfig(Section, frozen=True, kw_only=True):
    """ZeroMQ publisher.

    Attributes:
        bind: address of masks and status.
        bind_frames: address of images; by default the next port, or ``<path>-frames`` for ipc.
        bind_replay: address of replay; by default the port after that, or ``<path>-replay``.
        replay: duration of the history of masks for replay, in seconds; 0 disables replay.
        keys: key folder, see ``streamseg keys``; only keys allowed there can subscribe.
        insecure: whether to allow other addresses than loopback without keys.
        max_connections: maximum number of connections to each socket.
        jpeg_quality: JPEG quality of the images.
        wait_subscribers: number of subscribers that must join before the sources start.
    """

    bind: str = "tcp://127.0.0.1:5555"
    bind_frames: str | None = None
    bind_replay: str | None = None
    replay: Annotated[float, Meta(ge=0, le=3600)] = 30.0
    keys: str = ""
    insecure: bool = False
    max_connections: Annotated[int, Meta(ge=1, le=10_000)] = 256
    jpeg_quality: Annotated[int, Meta(ge=1, le=100)] = 80
    wait_subscribers: Annotated[int, Meta(ge=0)] = 0


class ControlConfig(Section, frozen=True, kw_only=True):
    """HTTP API for operators: health checks, metrics, and changes at run time.

    Attributes:
        enabled: whether to start it.
        bind: ``host:port``; None is loopback, with the port of the masks + 3.
        token_env: environment variable that contains the token for changes.
        token_file: file that contains only the token. Other addresses than loopback need a token.
        hosts: additional host names for which requests are accepted, ``name`` or ``name:port``;
            without a port, the bound port.
    """

    enabled: bool = True
    bind: Annotated[str, Meta(pattern=r"^.+:\d{1,5}$")] | None = None
    token_env: str = ""
    token_file: str = ""
    hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.token_env and self.token_file:
            raise ImpossibleValueError("token_env and token_file: set only one of them")


class MqttConfig(Section, frozen=True, kw_only=True):
    """MQTT sink: counts and events of objects; see docs/mqtt.md.

    Attributes:
        url: ``mqtt://[user[:password]@]host[:port]``, or ``mqtts://`` for TLS.
        user: user name, unless it is part of the url.
        password_env: environment variable that contains the password.
        password_file: file that contains only the password.
        prefix: first levels of all topics; unique for each service of a broker.
        home_assistant: discovery prefix of Home Assistant, usually ``homeassistant``; None
            disables discovery.
        every: minimum time between two updates of the counts of a source, in seconds.
        appear_after: time for which an object must be observed until it appears, in seconds.
        gone_after: time without an observation after which an object is gone, in seconds.
    """

    url: str
    user: str = ""
    password_env: str = ""
    password_file: str = ""
    prefix: TopicPath = "streamseg"
    home_assistant: TopicPath | None = None
    every: Positive = 1.0
    appear_after: NotNegative = 0.5
    gone_after: NotNegative = 2.0

    def __post_init__(self) -> None:
        if not self.url:
            raise ImpossibleValueError("url is empty")
        if self.password_env and self.password_file:
            raise ImpossibleValueError("password_env and password_file: set only one of them")


class Config(Section, frozen=True, kw_only=True):
    """Config of a service.

    Attributes:
        sources: sources of frames, at least one.
        model: model, weights and device.
        thresholds: filter of the instances of all sources without thresholds of their own.
        worker: batching.
        tracker: tracker of each source.
        publish: ZeroMQ publisher.
        control: HTTP API.
        mqtt: MQTT sink; None disables it.
        sinks: plug-in sinks, each with its ``type`` and its own options.
    """

    sources: tuple[SourceConfig, ...]
    model: ModelConfig = ModelConfig()
    thresholds: Thresholds = Thresholds()
    worker: WorkerConfig = WorkerConfig()
    tracker: TrackerConfig = TrackerConfig()
    publish: PublishConfig = PublishConfig()
    control: ControlConfig = ControlConfig()
    mqtt: MqttConfig | None = None
    sinks: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if not self.sources:
            raise ImpossibleValueError("sources is empty: name at least one")
        if self.mqtt is not None and not self.tracker.enabled:
            raise ImpossibleValueError("mqtt counts tracks: it needs tracker.enabled")
