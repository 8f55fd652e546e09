"""What can be configured: the schema, and how a file becomes a ``Config``, or is refused.

A config is one YAML file. It is validated whole before anything starts: an unknown key, a wrong
type or an impossible value is a :class:`ConfigError` that gives the path in the file and what was
expected. Every key has a default but the sources, so the smallest config names one source.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from streamseg.config.class_names import check_class_names
from streamseg.config.validation_errors import explain
from streamseg.config.yaml_file import MAX_DEPTH, parse, read_mapping
from streamseg.errors import ConfigError, ImpossibleValueError
from streamseg.errors.redaction import HIDDEN, redact_address
from streamseg.structures.masks import MAX_PIXELS
from streamseg.structures.results import SOURCE_NAME

Fraction01: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
Positive: TypeAlias = Annotated[float, Meta(gt=0, le=sys.float_info.max)]
NotNegative: TypeAlias = Annotated[float, Meta(ge=0, le=sys.float_info.max)]
Seconds: TypeAlias = Annotated[float, Meta(gt=0, le=1e6)]
"""What is waited for: 11 days at the most, which every clock can count."""
Count: TypeAlias = Annotated[int, Meta(ge=1)]
Point: TypeAlias = tuple[float, float]
MaskIoU: TypeAlias = Annotated[float, Meta(gt=0, le=1)] | Literal["auto"] | None
TopicPath: TypeAlias = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9._-]+)*\Z", max_length=100)
]
CameraOption: TypeAlias = Literal["video_size", "framerate", "input_format"]

_MAX_SECRET_BYTES = 4096


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the config; unknown keys are errors."""


SectionT = TypeVar("SectionT", bound=Section)


class Thresholds(Section, frozen=True, kw_only=True):
    """Which instances of a frame come out; applied once, after the model's post-processing.

    Attributes:
        score: the least score.
        score_by_class: the least score of single classes, by name; the others use ``score``.
        mask: the least probability of a pixel that belongs to a mask.
        min_area: the least area of a mask, in pixels.
        max_instances: at most so many, the best ones.
        classes: the names of the classes kept; empty keeps all.
        class_agnostic_iou: of two instances, of whatever classes, whose masks overlap by more
            (intersection over union), only the one with the higher score comes out. It is applied
            after all thresholds above but ``max_instances``. ``null`` applies none. ``auto`` is
            the model's own value in ``serve``, ``process`` and ``demo``, and none elsewhere.
        region: corners x, y of a polygon, in pixels; kept is what has its box's centre inside.
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
            raise ImpossibleValueError("region needs three corners or more")


class ModelConfig(Section, frozen=True, kw_only=True):
    """The model: a name of the catalogue, its weights and where it runs.

    Attributes:
        name: see ``streamseg models``.
        weights: ``default`` (the catalogue's), a path, or ``none`` (random, for tests).
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        input_size: the model's input, in pixels; what it means is the family's. None is the
            model's own.
        precision: ``fp32``, or ``bf16``/``fp16`` autocast, which changes results slightly.
        class_names: what the weights were trained on: names in the order of the model's outputs
            (ids from 1), or the name of each category id. None takes the names that the weights
            have, or those of COCO.
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
    """One source of frames.

    Attributes:
        url: recorded: a video file, a folder or glob of images, or ``test:`` (the synthetic
            pattern); live: ``rtsp://``, ``rtmp://`` or ``http://`` (also with an s; MJPEG, HLS,
            transport streams), ``udp://``, or a camera, ``/dev/video0``.
        name: how it is called on the wire; by default made from ``url``.
        stride: take every n-th frame.
        max_fps: take no more frames than that for each second of pts.
        start: seconds from the recording's beginning to begin at, whatever its clock says;
            recordings only, as ``end``.
        end: seconds from the recording's beginning to stop before.
        max_pixels: refuse frames larger than that.
        stream: which of the file's video streams, from 0; cover art isn't counted.
        thresholds: this source's own thresholds, instead of the service's.
        transport: what RTSP's media come over; this and all below are for live sources only.
        open_timeout: seconds until the first frame, else the attempt has failed.
        stall_after: seconds without a frame after which a connection has failed.
        max_attempts: give up after so many failed attempts in a row; None never does.
        user: who to log in as, unless the url says so.
        password_env: the environment variable that holds the password.
        password_file: the file that holds the password, and nothing else.
        hosts: other hosts that an HTTP redirection or playlist may lead to.
        input: the size, frame rate and pixel format that a camera is asked for, as V4L2's options
            ``video_size``, ``framerate`` and ``input_format``.
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
        url = str(self.url)  # the constructor does not check types
        if "\0" in url or ("://" in url and not url.isprintable()):
            raise ImpossibleValueError("url has a character that can't be printed")
        if self.password_env and self.password_file:
            raise ImpossibleValueError(
                "password_env and password_file: only one can hold the password"
            )
        if (self.password_env or self.password_file) and not self.user:
            raise ImpossibleValueError("a password needs a user to log in as")
        if self.name and not SOURCE_NAME.fullmatch(self.name):
            raise ImpossibleValueError(
                "name: use 1 to 64 letters, digits, dots, dashes and underscores, not . or .."
            )
        if self.end is not None and self.end <= self.start:
            raise ImpossibleValueError(f"end ({self.end:g}) must be after start ({self.start:g})")


class WorkerConfig(Section, frozen=True, kw_only=True):
    """How frames are batched for the model.

    Attributes:
        max_batch: at most so many frames in a forward.
        max_wait_ms: how long a batch waits for more frames.
        max_age_ms: frames of live sources that are older than this are dropped instead of
            processed; None takes the newest, however old.
        threads: threads of one forward on a CPU; None is torch's own choice.
    """

    max_batch: Annotated[int, Meta(ge=1, le=256)] = 4
    max_wait_ms: NotNegative = 10.0
    max_age_ms: Positive | None = None
    threads: Count | None = None


class TrackerConfig(Section, frozen=True, kw_only=True):
    """Identities.

    Attributes:
        enabled: false leaves every track at -1.
        type: name of a tracker plug-in; None is the built-in tracker, which alone takes the other
            options.
        lost_track_seconds: seconds that an identity outlives its object's disappearance.
        min_hits: frames before an object gets an identity.
        high_score_threshold: minimum score of the instances that are matched first; weaker ones
            only continue tracks that were matched in the frame before.
        new_track_threshold: minimum score of an instance that starts a track.
        class_vote: an identity's published class is the one with the most weight among so many of
            its last observations, weighted by their scores; ``score`` stays the instance's own.
            An object then keeps its identity where the model takes it for another class. 0
            publishes each instance's own class, and an identity is of one class.
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
                f"high_score_threshold ({self.high_score_threshold:g}) must not be over "
                f"new_track_threshold ({self.new_track_threshold:g})"
            )


class PublishConfig(Section, frozen=True, kw_only=True):
    """Where results are published.

    Attributes:
        bind: the ZeroMQ address of masks and status.
        bind_frames: that of pictures; by default the next port (or ``<path>-frames`` for ipc).
        bind_replay: that of replay; by default the port after that (or ``<path>-replay``).
        replay: seconds of masks that are kept for who was away; 0 keeps none and binds nothing.
        keys: a folder of keys, see ``streamseg keys``: then only those allowed there can subscribe.
        insecure: allow an address that isn't loopback without keys.
        max_connections: at most so many to each socket.
        jpeg_quality: of the pictures.
        wait_subscribers: hold the first frame back until so many have joined.
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
    """The HTTP endpoint for operators: health, metrics and what may be changed while it runs.

    Attributes:
        enabled: false opens none.
        bind: ``host:port``; None is loopback, three ports after the masks'.
        token_env: the environment variable that holds the token that changes ask for.
        token_file: the file that holds it, and nothing else. Beyond loopback there must be one.
        hosts: names other than the address bound that requests may ask for, ``name`` or
            ``name:port``; without a port, those of the port that is bound.
    """

    enabled: bool = True
    bind: Annotated[str, Meta(pattern=r"^.+:\d{1,5}$")] | None = None
    token_env: str = ""
    token_file: str = ""
    hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.token_env and self.token_file:
            raise ImpossibleValueError("token_env and token_file: only one can hold the token")


class MqttConfig(Section, frozen=True, kw_only=True):
    """An MQTT broker that is told who is there, and who comes and goes; see docs/mqtt.md.

    Attributes:
        url: ``mqtt://[user[:password]@]host[:port]``, or ``mqtts://`` for TLS.
        user: who to log in as, unless the url says so.
        password_env: the environment variable that holds the password.
        password_file: the file that holds the password, and nothing else.
        prefix: begins every topic; each service on a broker needs its own.
        home_assistant: where Home Assistant listens for what there is, mostly ``homeassistant``;
            None tells it nothing.
        every: least seconds between two messages of a source's counts.
        appear_after: seconds, of the stream, that an object is seen for before it counts.
        gone_after: seconds, of the stream, that an object isn't seen for before it is gone.
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
            raise ImpossibleValueError(
                "password_env and password_file: only one can hold the password"
            )


class Config(Section, frozen=True, kw_only=True):
    """A whole service.

    Attributes:
        sinks: plug-in sinks: the ``type`` of each, and its own options.
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
            raise ImpossibleValueError("mqtt counts identities: it needs tracker.enabled")


def load(path: str | Path | None) -> dict[str, Any]:
    """A YAML file's content, not yet validated; nothing at all without a file.

    Raises:
        ConfigError: the file is missing, isn't YAML or isn't a mapping.
    """
    if path is None:
        return {}
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"a config is loaded from a path, not {type(path).__name__}")
    return read_mapping(Path(path))


def override(raw: dict[str, Any], overrides: Sequence[str]) -> None:
    """Apply ``a.b=value`` overrides to ``raw``; the values are YAML, ``sources.0.url=…`` works.

    Raises:
        ConfigError: an override isn't written so, or leads nowhere.
    """
    if isinstance(overrides, str) or not isinstance(overrides, Iterable):
        raise ConfigError(f"overrides must be a list of texts, not {type(overrides).__name__}")
    for text in overrides:
        if not isinstance(text, str):
            raise ConfigError(f"an override must be a text, not {type(text).__name__}")
        key, equals, value = text.partition("=")
        keys = key.split(".")
        option = f"--set {_shown(key)}"
        if not equals or not all(keys):
            raise ConfigError(f"{option}: write it as key.key=value")
        if len(keys) > MAX_DEPTH:
            raise ConfigError(f"{option}: more than {MAX_DEPTH} keys, one within the other")
        _set(raw, keys, parse(value, option), option)


def validate(raw: dict[str, Any], where: str) -> Config:
    """``raw`` as a :class:`Config`; sources without a name get one from their ``url``.

    Args:
        raw: what ``load`` and ``override`` made.
        where: the file's name, for messages.

    Raises:
        ConfigError: naming the path of what is wrong, and what was expected.
    """
    config = convert(raw, Config, where)
    names = source_names([(s.name, s.url) for s in config.sources])
    _check_names(names, where)
    named = [msgspec.structs.replace(s, name=n) for s, n in zip(config.sources, names, strict=True)]
    return msgspec.structs.replace(config, sources=tuple(named))


def convert(raw: dict[str, Any], schema: type[SectionT], where: str) -> SectionT:
    """``raw`` as a ``schema``.

    Args:
        raw: what ``load`` and ``override`` made.
        schema: what is expected.
        where: the file's name, for messages.

    Raises:
        ConfigError: naming the path of what is wrong, and what was expected.
    """
    try:
        return msgspec.convert(raw, schema)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {explain(str(error), schema)}") from None


def _check_names(names: Sequence[str], where: str) -> None:
    """Refuse two sources of one name, or of names that some file systems take for one."""
    known: dict[str, str] = {}
    for name in names:
        other = known.get(name.casefold())
        if other == name:
            raise ConfigError(f"{where}: sources: two sources are called {name!r}")
        if other is not None:
            raise ConfigError(
                f"{where}: sources: {other!r} and {name!r} differ in upper and lower case only: "
                f"not every file system tells their folders apart"
            )
        known[name.casefold()] = name


def source_config(source: SourceConfig | str | os.PathLike[str]) -> SourceConfig:
    """Return the config of a source that is given as one, or by its url or path.

    Raises:
        ConfigError: it is neither, or a value is wrong: the constructor doesn't check their types.
    """
    if isinstance(source, str | os.PathLike):
        source = SourceConfig(url=os.fspath(source))
    if not isinstance(source, SourceConfig):
        raise ConfigError(f"a source is a SourceConfig, url or path, not {type(source).__name__}")
    return convert(msgspec.structs.asdict(source), SourceConfig, "the source")


def source_names(named: Sequence[tuple[str, str]]) -> list[str]:
    """A name for each (name, url): the given one, or one made from the url and unlike the others.

    The url's last part without its ending, and a number behind it where that is taken, in upper
    or lower case.
    """
    taken = {name.casefold() for name, _ in named if name}
    names = []
    for name, url in named:
        made = name or _first_free(_name_from_url(url), taken)
        taken.add(made.casefold())
        names.append(made)
    return names


def read_secret(variable: str, file: str, where: str) -> str:
    """What an environment variable or a file holds; the empty text if neither is named.

    Errors name neither of them: the secret itself may stand there by mistake.

    Args:
        variable: its name, or empty.
        file: its path, or empty; a line's end at its end isn't part of the secret.
        where: the start of an error message: whose secret, or which option.

    Raises:
        ConfigError: it isn't set, or can't be read.
    """
    if variable:
        secret = os.environ.get(variable)
        if secret is None:
            raise ConfigError(f"{where}: the environment variable that holds it isn't set")
        return secret
    if not file:
        return ""
    try:
        with Path(file).open(encoding="utf-8") as opened:
            secret = opened.read(_MAX_SECRET_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "isn't text"
        raise ConfigError(f"{where}: the file that holds it can't be read: {reason}") from None
    return secret.rstrip("\r\n")


def _first_free(stem: str, taken: set[str]) -> str:
    """Return ``stem``, or with a number behind it; case aside, because folders are called so."""
    number, name = 1, stem
    while name.casefold() in taken:
        number += 1
        name = f"{stem[: 63 - len(str(number))]}-{number}"
    return name


def _name_from_url(url: str) -> str:
    plain = url
    if "://" in url:
        plain = redact_address(url).split("?", 1)[0].split("#", 1)[0]
        scheme, _, rest = plain.partition("://")
        plain = f"{scheme}://{rest.rpartition('@')[2]}".replace(HIDDEN, "")
    elif url.startswith("test:"):
        plain = url.split("?", 1)[0]
    parts = [part for part in PurePath(plain).parts if not re.search(r"[*?\[]", part)]
    stem = PurePath(parts[-1]).stem if parts else plain
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.")[:64] or "source"


def _shown(key: str) -> str:
    """Return the part of a dotted key that can be one: a URL in its place has a password in it."""
    plain = re.match(r"[A-Za-z0-9_.]*", key)
    assert plain is not None
    return plain[0] if plain[0] == key else f"{plain[0]}…"


def _set(raw: dict[str, Any], keys: list[str], value: Any, option: str) -> None:
    at: Any = raw
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(at, list) and key.isdecimal() and int(key) < len(at):
            index: Any = int(key)
        elif isinstance(at, dict):
            index = key
        else:
            raise ConfigError(f"{option}: there is no {_shown('.'.join(keys[: depth + 1]))}")
        if last:
            at[index] = value
        else:
            at = at.setdefault(index, {}) if isinstance(at, dict) else at[index]
