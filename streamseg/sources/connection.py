"""One connection to a camera or a network stream: opened with timeouts, read until it fails.

Each kind of address is opened with only the FFmpeg protocols that it needs, so that what the
other side sends can't make FFmpeg read files or other protocols. ``rtsp`` itself isn't among an
RTSP address's: FFmpeg opens the address that it is given all the same, and follows no redirection,
which would hand the password to another host. Its RTMP knows none. Over HTTP, all
requests are made by ``http.py``.
"""

from __future__ import annotations

import re
import socket
import stat
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import av
import av.error
from av.container import InputContainer
from msgspec.structs import replace

from streamseg.config import SourceConfig, read_secret
from streamseg.errors import ConfigError, NoAnswerError, SourceError, redact_address
from streamseg.sources.base import SourceReport, decoder_limit, selected
from streamseg.sources.bytestream import ByteStream
from streamseg.sources.decoding import StartPosition, StreamDecoder
from streamseg.sources.http import Http, host_of
from streamseg.sources.http_media import open_streams
from streamseg.sources.live import Abandonment, Beginning, LiveSource
from streamseg.sources.udp import FORMATS as UDP_FORMATS
from streamseg.sources.udp import UdpAddress, UdpReceiver
from streamseg.sources.video_streams import choose_stream, ffmpeg_error_message
from streamseg.structures.results import Frame

DEVICE_FORMAT = "v4l2"
KNOCK_WITHIN = 2.0
"""Seconds. A host that didn't answer is knocked at so often, because the system itself would wait
longer and longer before it tried again, and miss when it comes back."""
_GRACE = 2.0
"""Seconds that FFmpeg's own timeouts are longer than ours, which say what is wrong."""
_RTMP_ANALYSED = "500000"
"""Microseconds of the stream. RTMP doesn't say what it holds, and FFmpeg would wait five seconds
for sound that may not come."""
_PROTOCOLS = {
    "rtsp": "rtp,tcp,udp",
    "rtsps": "rtp,tcp,udp,tls",
    "rtmp": "rtmp,tcp",
    "rtmps": "rtmps,tls,tcp",
    "udp": "udp",
}
_HTTP = ("http", "https")
"""Schemes of addresses that are read by ``http.py``, not by FFmpeg."""
_PORTS = {"rtsp": 554, "rtsps": 322, "rtmp": 1935, "rtmps": 443, "http": 80, "https": 443}
_WITHOUT_TIMES = ("mpjpeg", "mjpeg")
_UDP_OPTIONS = {"format_whitelist": UDP_FORMATS, "protocol_whitelist": _PROTOCOLS["udp"]}
_REFUSALS: dict[type[Exception], str] = {
    av.error.HTTPUnauthorizedError: "it refuses the user name or the password (401)",
    av.error.HTTPForbiddenError: "it forbids this (403)",
    av.error.HTTPNotFoundError: "there is no such stream (404)",
    av.error.InvalidDataError: "what comes is no video that can be read",
    av.error.EOFError: "it ends before there is any video that can be read",
}
_MOVED = "it sends its readers to another address, and that isn't followed: use that address"
_OTHER_FORMAT = "what comes has a format that isn't read over HTTP"
_SILENCE = (av.error.TimeoutError, av.error.ExitError)


def is_live(url: str) -> bool:
    """Whether the address is one of a camera or a network stream."""
    return _is_device(url) or _scheme_of(url) in (*_PROTOCOLS, *_HTTP)


def live_source(name: str, config: SourceConfig) -> LiveSource:
    """A camera or a network stream; nothing is opened yet.

    Raises:
        ConfigError: options that are for recordings, a port that can't be, or the password can't
            be had.
    """
    url = redact_address(config.url)
    if config.start or config.end is not None:
        raise ConfigError(f"{url}: start and end are for recordings, and this is live")
    if _is_device(config.url):
        if config.user:
            raise ConfigError(f"{url}: a camera on this machine has no user to log in as")
        return LiveSource(name, config, partial(_read_device, name, config))
    if config.input:
        raise ConfigError(f"{url}: input is for cameras on this machine, /dev/video0")
    _check_port(config.url)
    if _scheme_of(config.url) == "udp":
        UdpAddress.parse(config.url)
    else:
        host_of(config.url)
        _check_http_spaces(config.url)
    _login(config)
    return LiveSource(name, config, partial(_read_network, name, config))


def _check_port(url: str) -> None:
    """Refuse a port that can't be: FFmpeg takes it for another, and says other things of it."""
    try:
        possible = urlsplit(url).port != 0
    except ValueError:
        possible = False
    if not possible:
        raise ConfigError(f"{redact_address(url)}: ports are numbers from 1 to 65535")


def _check_http_spaces(url: str) -> None:
    """Refuse white space in the address of an HTTP request, in which it would end the address."""
    if _scheme_of(url) in ("http", "https") and re.search(r"\s", _without_login(url)[0]):
        raise ConfigError(f"{redact_address(url)}: has a space in it: write it as %20")


def _read_network(
    name: str,
    config: SourceConfig,
    beginning: Beginning,
    report: SourceReport,
    left: Abandonment,
    again: bool,
) -> Generator[Frame, None, None]:
    try:
        login = _login(config)  # each time: passwords are changed, and cameras lock accounts
    except ConfigError as error:
        raise SourceError(str(error)) from None
    if _scheme_of(config.url) == "udp":
        with (
            closing(UdpReceiver(name, UdpAddress.parse(config.url), report, left)) as receiver,
            closing(_open(config, receiver, _UDP_OPTIONS)) as container,
        ):
            yield from _frames(name, config, container, beginning, report, left)
        return
    if again:
        _knock(config.url)
    if _scheme_of(config.url) in _HTTP:
        yield from _read_http(name, config, login, beginning, report, left)
        return
    with closing(_open_url(config, login)) as container:
        yield from _frames(name, config, container, beginning, report, left)


def _read_http(
    name: str,
    config: SourceConfig,
    login: tuple[str, str] | None,
    beginning: Beginning,
    report: SourceReport,
    left: Abandonment,
) -> Generator[Frame, None, None]:
    """Yield the frames of the containers that an address serves.

    Each is an epoch of its own, unless its times follow from those of the one before.

    Raises:
        SourceError: why there are no more, unless the stream simply ended.
    """
    url, inline = _without_login(config.url)
    patience = max(config.open_timeout, config.stall_after) + _GRACE
    http = Http(url, config.hosts, login or inline, patience, left)
    left.on_set(http.abort)
    last: Frame | None = None
    with closing(http):
        for stream in open_streams(http, url, config.stream, left, report.note):
            if last is not None and stream.is_continuation:
                beginning = Beginning(last.index + 1, last.epoch, last.pts)
            elif last is not None:
                beginning = Beginning(last.index + 1, last.epoch + 1)
            with closing(_stream_frames(name, config, stream, beginning, report, left)) as frames:
                for last in frames:
                    yield last


def _stream_frames(
    name: str,
    config: SourceConfig,
    stream: ByteStream,
    beginning: Beginning,
    report: SourceReport,
    left: Abandonment,
) -> Generator[Frame, None, None]:
    """Yield the frames of one container.

    Raises:
        SourceError: why it can't be read on; first of all why its bytes ended.
    """
    config = replace(config, stream=stream.video_stream)
    options = {"format_whitelist": ",".join(stream.formats)}
    try:
        with closing(
            _open(config, stream, options, format=stream.only_format, io_open=stream.refuse_open)
        ) as container:
            yield from _frames(name, config, container, beginning, report, left, stream)
    except SourceError:
        stream.raise_failure()
        raise
    stream.raise_failure()


def _read_device(
    name: str,
    config: SourceConfig,
    beginning: Beginning,
    report: SourceReport,
    left: Abandonment,
    _again: bool,
) -> Generator[Frame, None, None]:
    path = Path(config.url)
    if DEVICE_FORMAT == "v4l2" and not (path.exists() and stat.S_ISCHR(path.stat().st_mode)):
        raise SourceError(f"{path}: there is no such camera")
    options = {str(key): value for key, value in config.input.items()}
    with closing(_open(config, config.url, options, format=DEVICE_FORMAT)) as container:
        yield from _frames(name, config, container, beginning, report, left)


def _frames(
    name: str,
    config: SourceConfig,
    container: InputContainer,
    beginning: Beginning,
    report: SourceReport,
    left: Abandonment,
    source: ByteStream | None = None,
) -> Generator[Frame, None, None]:
    """The frames of a container until it can't be read on, or ``left`` is set.

    Raises:
        SourceError: why, unless it simply ended.
    """
    stream = choose_stream(container, config)
    decoder = StreamDecoder(
        container,
        stream,
        config,
        StartPosition(index=beginning.index, seconds=beginning.seconds, epoch=beginning.epoch),
        0,
        report,
        use_arrival_times=container.format.name in _WITHOUT_TIMES,
        stop_event=left,
    )
    pictures = (
        decoder.lazy_frames() if source is None else source.pace_frames(decoder.lazy_frames())
    )
    yield from selected(name, config, pictures, report)
    if decoder.read_error:
        raise SourceError(f"it can't be read on: {decoder.read_error}")


def _open_url(config: SourceConfig, login: tuple[str, str] | None) -> InputContainer:
    scheme = _scheme_of(config.url)
    options = {"protocol_whitelist": _PROTOCOLS[scheme]}
    if scheme in ("rtsp", "rtsps"):
        options |= {
            "rtsp_transport": config.transport,
            "timeout": str(int((config.open_timeout + _GRACE) * 1e6)),
            "allowed_media_types": "video",
        }
    if scheme in ("rtmp", "rtmps"):
        options["analyzeduration"] = _RTMP_ANALYSED
    return _open(config, _with_login(config.url, login), options)


def _open(
    config: SourceConfig,
    what: str | UdpReceiver | ByteStream,
    options: dict[str, str],
    *,
    format: str | None = None,  # noqa: A002 - as av.open has it
    io_open: Callable[[str, int, Mapping[str, str]], BinaryIO] | None = None,
) -> InputContainer:
    options = {
        **options,
        # This limit holds in the decoder that FFmpeg probes with, before the size is known here.
        "max_pixels": str(decoder_limit(config.max_pixels)),
        "fpsprobesize": "0",  # the rate isn't used, and guessing it takes seconds
    }
    patience = (config.open_timeout + _GRACE, config.stall_after + _GRACE)
    try:
        return av.open(
            what,
            mode="r",
            format=format,
            options=options,
            timeout=patience,
            io_open=io_open,
            metadata_errors="replace",
        )
    except _SILENCE:
        raise NoAnswerError("no answer") from None
    except (av.error.FFmpegError, ValueError) as error:
        raise SourceError(_why(config.url, error)) from None


def _why(url: str, error: Exception) -> str:
    """Why an address can't be opened."""
    if _scheme_of(url) in ("rtsp", "rtsps") and isinstance(error, av.error.ArgumentError):
        return _MOVED
    if _scheme_of(url) in _HTTP and isinstance(error, av.error.ArgumentError):
        return _OTHER_FORMAT
    return _REFUSALS.get(type(error)) or ffmpeg_error_message(error).lower()


def _knock(url: str) -> None:
    """See whether anybody is there.

    Raises:
        NoAnswerError: nobody answered.
    """
    parts = urlsplit(url)
    port = parts.port or _PORTS[parts.scheme.lower()]
    try:
        with socket.create_connection((host_of(url), port), timeout=KNOCK_WITHIN):
            return
    except OSError as error:
        raise NoAnswerError(error.strerror or "no answer") from None


def _login(config: SourceConfig) -> tuple[str, str] | None:
    """User and password from where the config says that they are.

    Raises:
        ConfigError: they aren't there.
    """
    if not config.user:
        return None
    where = config.name or redact_address(config.url)
    if _without_login(config.url)[1] is not None:
        raise ConfigError(f"{where}: the url and user both say who to log in as")
    return config.user, read_secret(config.password_env, config.password_file, f"{where}: password")


def _without_login(url: str) -> tuple[str, tuple[str, str] | None]:
    """The address alone, and the user and password that it held."""
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url, None
    host = parts.netloc.rpartition("@")[2]
    return (
        urlunsplit(parts._replace(netloc=host)),
        (unquote(parts.username or ""), unquote(parts.password or "")),
    )


def _with_login(url: str, login: tuple[str, str] | None) -> str:
    if login is None:
        return url
    user, password = (quote(part, safe="") for part in login)
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{user}:{password}@{parts.netloc}"))


def _scheme_of(url: str) -> str:
    return url.partition("://")[0].lower() if "://" in url else ""


def _is_device(url: str) -> bool:
    return url.startswith("/dev/")
