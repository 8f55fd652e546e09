"""What can be configured: the schema, and how a file becomes a ``Config``, or is refused.

A config is one YAML file. It is validated whole before anything starts: an unknown key, a wrong
type or an impossible value is a :class:`ConfigError` that gives the path in the file and what was
expected. Every key has a default but the sources, so the smallest config names one source.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, get_args, get_type_hints

import msgspec
import yaml
from msgspec import Meta

from streamseg.errors import ConfigError
from streamseg.masks import MAX_PIXELS
from streamseg.types import SOURCE_NAME

Fraction01: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
Positive: TypeAlias = Annotated[float, Meta(gt=0, le=sys.float_info.max)]
NotNegative: TypeAlias = Annotated[float, Meta(ge=0, le=sys.float_info.max)]
Seconds: TypeAlias = Annotated[float, Meta(gt=0, le=1e6)]
"""What is waited for: 11 days at the most, which every clock can count."""
Count: TypeAlias = Annotated[int, Meta(ge=1)]
Point: TypeAlias = tuple[float, float]
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
        region: corners x, y of a polygon, in pixels; kept is what has its box's centre inside.
    """

    score: Fraction01 = 0.45
    score_by_class: dict[str, Fraction01] = {}
    mask: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    min_area: Annotated[int, Meta(ge=0)] = 0
    max_instances: Count = 100
    classes: tuple[str, ...] = ()
    region: tuple[Point, ...] = ()

    def __post_init__(self) -> None:
        if 0 < len(self.region) < 3:
            raise ValueError("region needs three corners or more")


class ModelConfig(Section, frozen=True, kw_only=True):
    """The model: a name of the catalogue, its weights and where it runs.

    Attributes:
        name: see ``streamseg models``.
        weights: ``default`` (the catalogue's), a path, or ``none`` (random, for tests).
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        input_size: the model's input, in pixels; what it means is the family's. None is the
            model's own.
        precision: ``fp32``, or ``bf16``/``fp16`` autocast, which changes results slightly.
    """

    name: str = "nanomask"
    weights: str = "default"
    device: Annotated[str, Meta(pattern=r"^(auto|cpu|cuda|cuda:\d+)$")] = "auto"
    input_size: Annotated[int, Meta(ge=32, le=4096)] | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"


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
            raise ValueError("url is empty")
        if self.password_env and self.password_file:
            raise ValueError("password_env and password_file: only one can hold the password")
        if (self.password_env or self.password_file) and not self.user:
            raise ValueError("a password needs a user to log in as")
        if self.name and not SOURCE_NAME.fullmatch(self.name):
            raise ValueError(
                f"name {self.name!r}: use 1 to 64 letters, digits, dots, dashes and underscores"
            )
        if self.end is not None and self.end <= self.start:
            raise ValueError(f"end ({self.end:g}) must be after start ({self.start:g})")


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
        lost_for: seconds that an identity outlives its object's disappearance.
        min_hits: frames before an object gets an identity.
        confident: instances with this score or more are matched first; weaker ones can only
            continue identities that were just seen.
        begin: the least score of an instance that begins an identity.
    """

    enabled: bool = True
    lost_for: NotNegative = 2.0
    min_hits: Count = 2
    confident: Fraction01 = 0.45
    begin: Fraction01 = 0.5

    def __post_init__(self) -> None:
        if self.confident > self.begin:
            raise ValueError(
                f"confident ({self.confident:g}) must not be over begin ({self.begin:g})"
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
            raise ValueError("token_env and token_file: only one can hold the token")


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
            raise ValueError("url is empty")
        if self.password_env and self.password_file:
            raise ValueError("password_env and password_file: only one can hold the password")


class Config(Section, frozen=True, kw_only=True):
    """A whole service."""

    sources: tuple[SourceConfig, ...]
    model: ModelConfig = ModelConfig()
    thresholds: Thresholds = Thresholds()
    worker: WorkerConfig = WorkerConfig()
    tracker: TrackerConfig = TrackerConfig()
    publish: PublishConfig = PublishConfig()
    control: ControlConfig = ControlConfig()
    mqtt: MqttConfig | None = None

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources is empty: name at least one")
        if self.mqtt is not None and not self.tracker.enabled:
            raise ValueError("mqtt counts identities: it needs tracker.enabled")


def load(path: Path | None) -> dict[str, Any]:
    """A YAML file's content, not yet validated; nothing at all without a file.

    Raises:
        ConfigError: the file is missing, isn't YAML or isn't a mapping.
    """
    return {} if path is None else _read(path)


def override(raw: dict[str, Any], overrides: Sequence[str]) -> None:
    """Apply ``a.b=value`` overrides to ``raw``; the values are YAML, ``sources.0.url=…`` works.

    Raises:
        ConfigError: an override isn't written so, or leads nowhere.
    """
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"--set {text}: write it as key.key=value")
        _set(raw, key.split("."), _parse_value(text, value), text)


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
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(f"{where}: sources: two sources are called {repeated[0]!r}")
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
        raise ConfigError(f"{where}: {_explain(str(error), schema)}") from None


def source_names(named: Sequence[tuple[str, str]]) -> list[str]:
    """A name for each (name, url): the given one, or one made from the url and unlike the others.

    The url's last part without its ending, and a number behind it where that is taken.
    """
    taken = {name for name, _ in named if name}
    names = []
    for name, url in named:
        made = name or _first_free(_name_from_url(url), taken)
        taken.add(made)
        names.append(made)
    return names


def read_secret(variable: str, file: str, where: str) -> str:
    """What an environment variable or a file holds; the empty text if neither is named.

    Args:
        variable: its name, or empty.
        file: its path, or empty; a line's end at its end isn't part of the secret.
        where: begins the message of an error.

    Raises:
        ConfigError: it isn't set, or can't be read.
    """
    if variable:
        if variable not in os.environ:
            raise ConfigError(f"{where}the environment variable {variable} isn't set")
        return os.environ[variable]
    if not file:
        return ""
    try:
        with Path(file).open(encoding="utf-8") as opened:
            secret = opened.read(_MAX_SECRET_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "isn't text"
        raise ConfigError(f"{where}{file}: can't be read: {reason}") from None
    return secret.rstrip("\r\n")


def _first_free(stem: str, taken: set[str]) -> str:
    number, name = 1, stem
    while name in taken:
        number += 1
        name = f"{stem[:60]}-{number}"
    return name


def _name_from_url(url: str) -> str:
    plain = url.split("?", 1)[0] if "://" in url or url.startswith("test:") else url
    parts = [part for part in PurePath(plain).parts if not re.search(r"[*?\[]", part)]
    stem = PurePath(parts[-1]).stem if parts else plain
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.")[:64] or "source"


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: isn't YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a config is a mapping of keys, not {type(raw).__name__}")
    return raw


def _parse_value(option: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {option}: the value isn't YAML") from None


def _set(raw: dict[str, Any], keys: list[str], value: Any, option: str) -> None:
    at: Any = raw
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(at, list) and key.isdecimal() and int(key) < len(at):
            index: Any = int(key)
        elif isinstance(at, dict):
            index = key
        else:
            raise ConfigError(f"--set {option}: there is no {'.'.join(keys[: depth + 1])}")
        if last:
            at[index] = value
        else:
            at = at.setdefault(index, {}) if isinstance(at, dict) else at[index]


_UNKNOWN = re.compile(r"Object contains unknown field `(?P<field>[^`]*)`(?: - at `\$(?P<at>.*)`)?")
_EXPECTED = re.compile(r"(?P<what>.*) - at `\$(?P<at>.*)`", re.DOTALL)


def _explain(message: str, schema: type[Section]) -> str:
    """The message of msgspec, with the path first and near matches of an unknown key."""
    if unknown := _UNKNOWN.fullmatch(message):
        at, key = unknown["at"] or "", unknown["field"]
        known = _keys_at(at, schema)
        near = difflib.get_close_matches(key, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        return f"{_path(at, key)}: unknown key; {hint}"
    if expected := _EXPECTED.fullmatch(message):
        return f"{_path(expected['at'])}: {expected['what']}"
    return message


def _path(at: str, key: str = "") -> str:
    return ".".join(part for part in (at.lstrip("."), key) if part) or "the config"


def _keys_at(at: str, schema: type[Section]) -> list[str]:
    """The keys that ``schema`` has at a path such as ``.sources[0].thresholds``.

    Where one of several sections may stand, those of all of them.
    """
    sections = [schema]
    for key in re.findall(r"[A-Za-z_]\w*", at):
        hints = [get_type_hints(section).get(key) for section in sections]
        sections = [section for hint in hints for section in _sections_in(hint)]
    keys = [key for section in sections for key in _own_keys(section)]
    return list(dict.fromkeys(keys))


def _sections_in(hint: Any) -> list[type[Section]]:
    """The sections that a type hint is made of."""
    if isinstance(hint, type) and issubclass(hint, Section):
        return [hint]
    return [section for argument in get_args(hint) for section in _sections_in(argument)]


def _own_keys(section: type[Section]) -> list[str]:
    tag = section.__struct_config__.tag_field
    return [*([tag] if tag else []), *section.__struct_fields__]
