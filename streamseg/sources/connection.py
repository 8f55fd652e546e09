"""Connection to a camera or a network stream, with timeouts.

Each kind of URL is opened with only the FFmpeg protocols that it needs, so that a server can't make
FFmpeg read files or use other protocols. ``rtsp`` itself is not allowed for RTSP URLs: FFmpeg still
opens the given URL, but follows no redirection, which would send the password to another host. RTMP
has no redirections. HTTP requests are made by ``http.py``.
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
from streamseg.sources.base import SourceReport, decoder_limit, select_frames
from streamseg.sources.bytestream import ByteStream
from streamseg.sources.decoding import StartPosition, StreamDecoder
from streamseg.sources.http import HttpClient, parse_host
from streamseg.sources.http_media import open_streams
from streamseg.sources.live import CancelEvent, ConnectionStart, LiveSource
from streamseg.sources.udp import FORMATS as UDP_FORMATS
from streamseg.sources.udp import UdpAddress, UdpReceiver
from streamseg.sources.video_streams import choose_stream, ffmpeg_error_message
from streamseg.structures.results import Frame

DEVICE_FORMAT = "v4l2"
PROBE_TIMEOUT = 2.0
"""Seconds. A host that didn't answer is first probed with a TCP connection, because the retries of
the kernel have increasing intervals and would detect its return late."""
_GRACE = 2.0
"""Seconds by which FFmpeg's timeouts exceed ours, which give better error messages."""
_RTMP_ANALYSED = "500000"
"""Microseconds. RTMP doesn't announce its streams, and FFmpeg would wait five seconds for audio."""
_PROTOCOLS = {
    "rtsp": "rtp,tcp,udp",
    "rtsps": "rtp,tcp,udp,tls",
    "rtmp": "rtmp,tcp",
    "rtmps": "rtmps,tls,tcp",
    "udp": "udp",
}
_HTTP = ("http", "https")
"""URL schemes that are read by ``http.py`` instead of FFmpeg."""
_PORTS = {"rtsp": 554, "rtsps": 322, "rtmp": 1935, "rtmps": 443, "http": 80, "https": 443}
_WITHOUT_TIMES = ("mpjpeg", "mjpeg")
_UDP_OPTIONS = {"format_whitelist": UDP_FORMATS, "protocol_whitelist": _PROTOCOLS["udp"]}
_OPEN_ERRORS: dict[type[Exception], str] = {
    av.error.HTTPUnauthorizedError: "the server rejects the user name or the password (401)",
    av.error.HTTPForbiddenError: "the server denies access (403)",
    av.error.HTTPNotFoundError: "the stream was not found (404)",
    av.error.InvalidDataError: "the data are not a video in a supported format",
    av.error.EOFError: "the stream ended before any video data",
}
_REDIRECTED = "the server redirects to another address, which isn't followed: use that address"
_UNSUPPORTED_FORMAT = "its format isn't supported over HTTP"
_TIMEOUT_ERRORS = (av.error.TimeoutError, av.error.ExitError)


def is_live_url(url: str) -> bool:
    """Return whether the URL is that of a camera or a network stream."""
    return _is_device(url) or _get_scheme(url) in (*_PROTOCOLS, *_HTTP)


def create_live_source(name: str, config: SourceConfig) -> LiveSource:
    """Create the source of a camera or a network stream, without connecting.

    Raises:
        ConfigError: an option is for recordings, the port is invalid, or the password is missing.
    """
    url = redact_address(config.url)
    if config.start or config.end is not None:
        raise ConfigError(f"{url}: start and end are for recordings, not for live sources")
    if _is_device(config.url):
        if config.user:
            raise ConfigError(f"{url}: a local camera has no login: remove user")
        return LiveSource(name, config, partial(_read_device, name, config))
    if config.input:
        raise ConfigError(f"{url}: input is for local cameras such as /dev/video0")
    _check_port(config.url)
    if _get_scheme(config.url) == "udp":
        UdpAddress.parse(config.url)
    else:
        parse_host(config.url)
        _check_http_spaces(config.url)
    _read_login(config)
    return LiveSource(name, config, partial(_read_network, name, config))


def _check_port(url: str) -> None:
    """Refuse an invalid port, which FFmpeg would replace by another one."""
    try:
        is_valid = urlsplit(url).port != 0
    except ValueError:
        is_valid = False
    if not is_valid:
        raise ConfigError(f"{redact_address(url)}: the port must be a number from 1 to 65535")


def _check_http_spaces(url: str) -> None:
    """Refuse white space in an HTTP URL, which would end the URL in the request."""
    if _get_scheme(url) in ("http", "https") and re.search(r"\s", _split_login(url)[0]):
        raise ConfigError(f"{redact_address(url)}: contains a space: write it as %20")


def _read_network(
    name: str,
    config: SourceConfig,
    start: ConnectionStart,
    report: SourceReport,
    cancel_event: CancelEvent,
    should_probe: bool,
) -> Generator[Frame, None, None]:
    try:
        login = _read_login(config)  # read each time, because passwords change
    except ConfigError as error:
        raise SourceError(str(error)) from None
    if _get_scheme(config.url) == "udp":
        with (
            closing(
                UdpReceiver(name, UdpAddress.parse(config.url), report, cancel_event)
            ) as receiver,
            closing(_open_container(config, receiver, _UDP_OPTIONS)) as container,
        ):
            yield from _read_frames(name, config, container, start, report, cancel_event)
        return
    if should_probe:
        _probe_host(config.url)
    if _get_scheme(config.url) in _HTTP:
        yield from _read_http(name, config, login, start, report, cancel_event)
        return
    with closing(_open_url(config, login)) as container:
        yield from _read_frames(name, config, container, start, report, cancel_event)


def _read_http(
    name: str,
    config: SourceConfig,
    login: tuple[str, str] | None,
    start: ConnectionStart,
    report: SourceReport,
    cancel_event: CancelEvent,
) -> Generator[Frame, None, None]:
    """Yield the frames of the containers served at a URL.

    Each container starts a new epoch, unless its times continue those of the previous one.

    Raises:
        SourceError: reading failed.
    """
    url, inline = _split_login(config.url)
    timeout = max(config.open_timeout, config.stall_after) + _GRACE
    http = HttpClient(url, config.hosts, login or inline, timeout, cancel_event)
    cancel_event.on_set(http.abort)
    last: Frame | None = None
    with closing(http):
        for stream in open_streams(http, url, config.stream, cancel_event, report.add_note):
            if last is not None and stream.is_continuation:
                start = ConnectionStart(last.index + 1, last.epoch, last.pts)
            elif last is not None:
                start = ConnectionStart(last.index + 1, last.epoch + 1)
            with closing(
                _read_stream_frames(name, config, stream, start, report, cancel_event)
            ) as frames:
                for last in frames:
                    yield last


def _read_stream_frames(
    name: str,
    config: SourceConfig,
    stream: ByteStream,
    start: ConnectionStart,
    report: SourceReport,
    cancel_event: CancelEvent,
) -> Generator[Frame, None, None]:
    """Yield the frames of one container.

    Raises:
        SourceError: reading failed; an error of the byte stream takes precedence.
    """
    config = replace(config, stream=stream.video_stream)
    options = {"format_whitelist": ",".join(stream.formats)}
    try:
        with closing(
            _open_container(
                config, stream, options, format=stream.only_format, io_open=stream.refuse_open
            )
        ) as container:
            yield from _read_frames(name, config, container, start, report, cancel_event, stream)
    except SourceError:
        stream.raise_failure()
        raise
    stream.raise_failure()


def _read_device(
    name: str,
    config: SourceConfig,
    start: ConnectionStart,
    report: SourceReport,
    cancel_event: CancelEvent,
    _should_probe: bool,
) -> Generator[Frame, None, None]:
    path = Path(config.url)
    if DEVICE_FORMAT == "v4l2" and not (path.exists() and stat.S_ISCHR(path.stat().st_mode)):
        raise SourceError(f"{path}: no such camera")
    options = {str(key): value for key, value in config.input.items()}
    with closing(_open_container(config, config.url, options, format=DEVICE_FORMAT)) as container:
        yield from _read_frames(name, config, container, start, report, cancel_event)


def _read_frames(
    name: str,
    config: SourceConfig,
    container: InputContainer,
    start: ConnectionStart,
    report: SourceReport,
    cancel_event: CancelEvent,
    source: ByteStream | None = None,
) -> Generator[Frame, None, None]:
    """Yield the frames of a container until its end or until ``cancel_event`` is set.

    Raises:
        SourceError: reading failed.
    """
    stream = choose_stream(container, config)
    decoder = StreamDecoder(
        container,
        stream,
        config,
        StartPosition(index=start.index, seconds=start.seconds, epoch=start.epoch),
        0,
        report,
        use_arrival_times=container.format.name in _WITHOUT_TIMES,
        stop_event=cancel_event,
    )
    frames = decoder.lazy_frames()
    paced = frames if source is None else source.pace_frames(frames)
    yield from select_frames(name, config, paced, report)
    if decoder.read_error:
        raise SourceError(f"reading failed: {decoder.read_error}")


def _open_url(config: SourceConfig, login: tuple[str, str] | None) -> InputContainer:
    scheme = _get_scheme(config.url)
    options = {"protocol_whitelist": _PROTOCOLS[scheme]}
    if scheme in ("rtsp", "rtsps"):
        options |= {
            "rtsp_transport": config.transport,
            "timeout": str(int((config.open_timeout + _GRACE) * 1e6)),
            "allowed_media_types": "video",
        }
    if scheme in ("rtmp", "rtmps"):
        options["analyzeduration"] = _RTMP_ANALYSED
    return _open_container(config, _add_login(config.url, login), options)


def _open_container(
    config: SourceConfig,
    source: str | UdpReceiver | ByteStream,
    options: dict[str, str],
    *,
    format: str | None = None,  # noqa: A002 - as in av.open
    io_open: Callable[[str, int, Mapping[str, str]], BinaryIO] | None = None,
) -> InputContainer:
    options = {
        **options,
        # Also limits the decoder that FFmpeg uses for probing.
        "max_pixels": str(decoder_limit(config.max_pixels)),
        "fpsprobesize": "0",  # the frame rate isn't used, and estimating it takes seconds
    }
    timeouts = (config.open_timeout + _GRACE, config.stall_after + _GRACE)
    try:
        return av.open(
            source,
            mode="r",
            format=format,
            options=options,
            timeout=timeouts,
            io_open=io_open,
            metadata_errors="replace",
        )
    except _TIMEOUT_ERRORS:
        raise NoAnswerError("no answer") from None
    except (av.error.FFmpegError, ValueError) as error:
        raise SourceError(_describe_open_error(config.url, error)) from None


def _describe_open_error(url: str, error: Exception) -> str:
    """Return why a URL can't be opened."""
    if _get_scheme(url) in ("rtsp", "rtsps") and isinstance(error, av.error.ArgumentError):
        return _REDIRECTED
    if _get_scheme(url) in _HTTP and isinstance(error, av.error.ArgumentError):
        return _UNSUPPORTED_FORMAT
    return _OPEN_ERRORS.get(type(error)) or ffmpeg_error_message(error).lower()


def _probe_host(url: str) -> None:
    """Check whether the host accepts TCP connections.

    Raises:
        NoAnswerError: it doesn't answer.
    """
    parts = urlsplit(url)
    port = parts.port or _PORTS[parts.scheme.lower()]
    try:
        with socket.create_connection((parse_host(url), port), timeout=PROBE_TIMEOUT):
            return
    except OSError as error:
        raise NoAnswerError(error.strerror or "no answer") from None


def _read_login(config: SourceConfig) -> tuple[str, str] | None:
    """Return user name and password from the sources named in the config, or None.

    Raises:
        ConfigError: the password is missing, or the URL has a user name, too.
    """
    if not config.user:
        return None
    where = config.name or redact_address(config.url)
    if _split_login(config.url)[1] is not None:
        raise ConfigError(f"{where}: both the url and user contain a user name: remove one")
    return config.user, read_secret(config.password_env, config.password_file, f"{where}: password")


def _split_login(url: str) -> tuple[str, tuple[str, str] | None]:
    """Return the URL without user name and password, and these."""
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url, None
    host = parts.netloc.rpartition("@")[2]
    return (
        urlunsplit(parts._replace(netloc=host)),
        (unquote(parts.username or ""), unquote(parts.password or "")),
    )


def _add_login(url: str, login: tuple[str, str] | None) -> str:
    if login is None:
        return url
    user, password = (quote(part, safe="") for part in login)
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{user}:{password}@{parts.netloc}"))


def _get_scheme(url: str) -> str:
    return url.partition("://")[0].lower() if "://" in url else ""


def _is_device(url: str) -> bool:
    return url.startswith("/dev/")
