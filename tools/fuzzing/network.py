"""Fuzz targets that read from the network: HTTP, ZeroMQ messages, ZMTP, control requests."""

from __future__ import annotations

import contextlib
import itertools
import re
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from fuzzing.files import MAX_FRAMES, MAX_PIXELS, MEDIA
from fuzzing.mutation import mutate_bytes, mutate_text
from fuzzing.trial import Seed, Target

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from support.publishers import (
    GREETING,
    Service,
    encode_ready,
    encode_solid_jpeg,
    instances,
    raw_peer,
    result,
    wait_until,
)
from support.subscribers import masks_json, raw_publisher, status_json

from streamseg import connect, load_model
from streamseg.config import Config, ControlConfig, ModelConfig, PublishConfig, SourceConfig
from streamseg.errors import ReceiveTimeout
from streamseg.service.service import Service as LiveService
from streamseg.service.supervisor import Supervisor
from streamseg.sources import open_source

ENDLESS = b"@ENDLESS@"
"""At the end of an answer: its last kilobyte is repeated until the reader leaves."""
_ENDLESS_BYTES = 1 << 30
_SERVER = b"@SERVER@"
_SPLIT = b"\n@@ "
_MESSAGE, _PART = b"\n--message--\n", b"\n--part--\n"
_STREAM_SECONDS = 4.0
_ALIVE_SECONDS = 30.0

_HLS_TOKENS = (
    *(b"#EXTM3U", b"#EXT-X-ENDLIST", b"#EXT-X-DISCONTINUITY", b"#EXT-X-MEDIA-SEQUENCE:-1"),
    *(b"#EXT-X-TARGETDURATION:0", b"#EXTINF:0,", b"#EXTINF:-1,", b"#EXT-X-BYTERANGE:188@0"),
    *(b'#EXT-X-MAP:URI="/0.ts"', b'#EXT-X-MAP:URI="/init.mp4",BYTERANGE="10@0"'),
    *(b'#EXT-X-KEY:METHOD=AES-128,URI="/key",IV=0x1', b'#EXT-X-KEY:METHOD=SAMPLE-AES,URI="x"'),
    *(b"http://@CANARY@/0.ts", b"tcp://@CANARY@", b"file://@CANARY_FILE@", b"@CANARY_FILE@"),
    *(b"concat:http://@CANARY@/0.ts", b"crypto:http://@CANARY@/0.ts", b"udp://@CANARY@"),
    *(b"subfile,,start,0,end,999,,:@CANARY_FILE@", b"data:video/mp2t;base64,R0AREABC"),
    *(b"//@CANARY@/", b"#EXT-X-STREAM-INF:BANDWIDTH=1", b"#EXT-X-PLAYLIST-TYPE:EVENT"),
    b'#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="a",NAME="a",URI="/0.ts"',
    *(b"/0.ts", b"/missing.ts", b"/master.m3u8", b"/live.m3u8", b"/list.ffconcat"),
    *(b"#EXT-X-START:TIME-OFFSET=-9", b"#EXT-X-PROGRAM-DATE-TIME:2020-01-01T00:00:00Z"),
)
_HTTP_TOKENS = (
    *(b"Content-Length: 10\r", b"Content-Length: 99999999999\r", b"Content-Length: -1\r"),
    *(b"Transfer-Encoding: chunked\r", b"Content-Type: image/jpeg\r", b"Content-Encoding: gzip\r"),
    *(b"Location: http://@CANARY@/\r", b"Location: /live.m3u8\r", b"HTTP/1.1 302 Found\r"),
    *(b"Content-Type: multipart/x-mixed-replace; boundary=b\r", b"--b\r", b"--b--\r", b"\r"),
    *(b"Content-Type: application/vnd.apple.mpegurl\r", b"Content-Type: video/mp2t\r", ENDLESS),
    *(b"HTTP/1.1 401 no\r\nWWW-Authenticate: Digest realm=x\r", b"Content-Range: bytes 0-1/2\r"),
    *(b"Content-Type: application/dash+xml\r", b"Content-Type: application/sdp\r", b": "),
)
_CONTROL_TOKENS = (
    *(b"Content-Length: 5\r", b"Transfer-Encoding: chunked\r", b"GET /healthz HTTP/1.1\r"),
    *(b"Host: evil\r", b'"url": "test:?live=1"', b'"name": ".."', b"null", b"1e999", b"{", b"["),
    *(b"PUT /v1/thresholds HTTP/1.1\r", b"POST /v1/sources/gate/pause HTTP/1.1\r"),
    *(b"DELETE /v1/sources/gate HTTP/1.1\r", b"/v1/sources/%2e", b'"score": 2', b"\x00", b"\xff"),
    *(b"Expect: 100-continue\r", b"Upgrade: x\r"),
)
_JSON_TOKENS = (
    *(b"null", b"-1", b"1e999", b'"rle": ""', b'"rle": "~~~~"', b'"box": [0,0,0,0]', b"[", b"{"),
    *(b'"size": [1, 1]', b'"size": [2147483647, 2147483647]', b'"v": 2', b'"seq": -1', b"\x00"),
    *(b"masks/gate/", b"status//", b"frames/gate/", b"video/gate/"),
    *(b'"track": "x"', b'"label": 1.5'),
)


def _answer(kind: str, body: bytes) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n\r\n".encode() + body


def _stream(*answers: tuple[str, str, bytes]) -> bytes:
    """Return the answers of a server, path by path; the first path is the stream's own."""
    return b"".join(
        _SPLIT + path.encode() + b"\n" + _answer(kind, body) for path, kind, body in answers
    )


def _streams() -> Sequence[Seed]:
    return [*_hls_streams(), *_camera_streams(), *_forbidden_streams()]


def _hls_streams() -> Sequence[Seed]:
    hls, ts, mp4 = "application/vnd.apple.mpegurl", "video/mp2t", "video/mp4"
    segment = (MEDIA / "b.ts").read_bytes()[: 188 * 60]
    segments = (("/0.ts", ts, segment), ("/1.ts", ts, segment))
    start, rest = _fragments()
    head = b"#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:1\n#EXT-X-MEDIA-SEQUENCE:0\n"
    two, end = b"#EXTINF:1,\n/0.ts\n#EXTINF:1,\n/1.ts\n", b"#EXT-X-ENDLIST\n"
    recorded = ("/rec.m3u8", hls, head + two + end)
    master = b"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n/rec.m3u8\n"
    mapped = head + b'#EXT-X-MAP:URI="/init.mp4"\n#EXTINF:1,\n/0.m4s\n' + end
    keyed = head + b'#EXT-X-KEY:METHOD=AES-128,URI="/key"\n' + two + end
    return [
        Seed("recorded", _stream(recorded, *segments)),
        Seed("live", _stream(("/live.m3u8", hls, head + two), *segments)),
        Seed("master", _stream(("/m.m3u8", hls, master), recorded, *segments)),
        Seed(
            "mapped",
            _stream(("/a.m3u8", hls, mapped), ("/init.mp4", mp4, start), ("/0.m4s", mp4, rest)),
        ),
        Seed("keyed", _stream(("/k.m3u8", hls, keyed), ("/key", "x/y", bytes(16)), *segments)),
    ]


def _camera_streams() -> Sequence[Seed]:
    parts = b"".join(
        b"--b\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(j), j)
        for j in (encode_solid_jpeg(), encode_solid_jpeg(color=(0, 255, 0)))
    )
    multipart = "multipart/x-mixed-replace; boundary=b"
    ts = (MEDIA / "b.ts").read_bytes()[: 188 * 60]
    return [
        Seed("parts", _stream(("/cam", multipart, parts))),
        Seed("endless", _stream(("/cam", multipart, parts + ENDLESS))),
        Seed("jpegs", _stream(("/cam", "image/jpeg", encode_solid_jpeg() + encode_solid_jpeg()))),
        Seed("ts", _stream(("/cam.ts", "video/mp2t", ts))),
        Seed("mp4", _stream(("/cam.mp4", "video/mp4", (MEDIA / "fragmented.mp4").read_bytes()))),
        Seed("flv", _stream(("/cam.flv", "video/x-flv", b"FLV\x01\x01\0\0\0\x09" + bytes(4) + ts))),
    ]


def _forbidden_streams() -> Sequence[Seed]:
    """Return formats whose demuxers open other addresses, and a redirection."""
    start, rest = _fragments()
    mpd = (
        b'<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        b'mediaPresentationDuration="PT1S" profiles="urn:mpeg:dash:profile:isoff-live:2011">\n'
        b'<Period><AdaptationSet mimeType="video/mp4">\n<Representation id="0" bandwidth="9">\n'
        b'<SegmentTemplate timescale="1" duration="1" initialization="/init.mp4" media="/0.m4s"/>\n'
        b"</Representation></AdaptationSet></Period></MPD>\n"
    )
    dash = ("/cam.mpd", "application/dash+xml", mpd)
    parts = (("/init.mp4", "video/mp4", start), ("/0.m4s", "video/mp4", rest))
    concat = b"ffconcat version 1.0\nfile http://@CANARY@/0.ts\n"
    sdp = b"v=0\nc=IN IP4 127.0.0.2\nm=video 5004 RTP/AVP 96\n"
    return [
        Seed("dash", _stream(dash, *parts)),
        Seed("concat", _stream(("/list.ffconcat", "text/plain", concat))),
        Seed("sdp", _stream(("/cam.sdp", "application/sdp", sdp))),
        Seed("moved", _SPLIT + b"/cam\nHTTP/1.1 302 Found\r\nLocation: http://@CANARY@/\r\n\r\n"),
    ]


def _fragments() -> tuple[bytes, bytes]:
    """Return the initialization segment of a fragmented MP4, and the rest of it."""
    data = (MEDIA / "fragmented.mp4").read_bytes()
    moof = data.index(b"moof") - 4
    return data[:moof], data[moof:]


def _mutate_stream(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Change one answer: its head, its text or its binary body."""
    answers = data.split(_SPLIT)[1:]
    if not answers:
        return data
    at = random.randrange(len(answers)) if random.random() < 0.4 else 0
    path, _, answer = answers[at].partition(b"\n")
    head, gap, body = answer.partition(b"\r\n\r\n")
    is_text = body[:1] in (b"#", b"<", b"v", b"f", b"-", b"")
    if random.random() < 0.35:
        head = mutate_text(random, head, (), _HTTP_TOKENS)
    elif is_text:
        body = mutate_text(random, body, (), _HTTP_TOKENS if body[:1] == b"-" else _HLS_TOKENS)
    else:
        body = mutate_bytes(random, body, ())
    answers[at] = path + b"\n" + head + gap + body
    if random.random() < 0.05 and others:
        answers += random.choice(others).split(_SPLIT)[1:]
    return b"".join(_SPLIT + answer for answer in answers)


def _read_stream(_folder: Path, _name: str, data: bytes) -> None:
    answers = [answer.partition(b"\n")[::2] for answer in data.split(_SPLIT)[1:]]
    if not answers:
        return
    door = socket.create_server(("127.0.0.1", 0), backlog=64)
    host = f"127.0.0.1:{door.getsockname()[1]}"
    served = {path: answer.replace(_SERVER, host.encode()) for path, answer in reversed(answers)}
    threading.Thread(target=_serve, args=(door, served), daemon=True).start()
    path = re.sub(rb"[^\x21-\x7e]", b"", answers[0][0]).decode()
    config = SourceConfig(
        url=f"http://{host}/{path.lstrip('/')}",
        max_pixels=MAX_PIXELS,
        max_attempts=2 if len(data) % 8 == 0 else 1,
        open_timeout=2,
        stall_after=1,
    )
    source = open_source(config)
    timer = threading.Timer(_STREAM_SECONDS, source.control.stop)
    timer.daemon = True
    timer.start()
    for _ in itertools.islice(source.frames(), MAX_FRAMES):
        pass
    timer.cancel()


def _serve(door: socket.socket, answers: dict[bytes, bytes]) -> None:
    while True:
        connection = door.accept()[0]
        threading.Thread(target=_send, args=(connection, answers), daemon=True).start()


def _send(connection: socket.socket, answers: dict[bytes, bytes]) -> None:
    with connection, contextlib.suppress(OSError):
        connection.settimeout(10)
        words = connection.recv(65536).split(b" ")
        path = words[1].partition(b"?")[0] if len(words) > 1 else b""
        answer = answers.get(path, b"HTTP/1.1 404 Not Found\r\n\r\n")
        whole, endless, _ = answer.partition(ENDLESS)
        connection.sendall(whole)
        sent = 0
        while endless and sent < _ENDLESS_BYTES:
            chunk = (whole[-1024:] or b"x") * 64
            connection.sendall(chunk)
            sent += len(chunk)


def _messages() -> Sequence[Seed]:
    found = [
        b"masks/gate/" + _PART + masks_json(3),
        b"masks/gate/" + _PART + masks_json(4, item=result(4, found=instances(0))),
        b"frames/gate/" + _PART + masks_json(3) + _PART + encode_solid_jpeg(),
        b"status/gate/" + _PART + status_json(source="gate"),
        b"status//" + _PART + status_json(endpoints={"frames": "tcp://127.0.0.1:9"}),
    ]
    return [Seed("messages", _MESSAGE.join(found)), Seed("masks", found[0]), Seed("end", found[3])]


def _mutate_messages(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    return mutate_text(random, data, others, (*_JSON_TOKENS, _MESSAGE, _PART))


def _receive_messages(_folder: Path, _name: str, data: bytes) -> None:
    """Send the messages to a subscriber, which must still receive a sound one afterwards."""
    with raw_publisher() as (publisher, address), connect(address, timeout=0.2) as subscription:
        assert publisher.poll(5000)
        publisher.recv()
        for message in data.split(_MESSAGE):
            publisher.send_multipart(message.split(_PART))
        end = time.monotonic() + _ALIVE_SECONDS
        for number in itertools.count(10_000):
            # Another source: what was said of "gate" may be its end.
            publisher.send_multipart([b"masks/other/", masks_json(number, source="other")])
            with contextlib.suppress(ReceiveTimeout):
                received = subscription.receive()
                if subscription.ended or (received is not None and received.source == "other"):
                    return
            assert time.monotonic() < end, "the subscriber receives nothing more"


def _peers() -> Sequence[Seed]:
    subscribe = b"\x00\x01\x01"
    greeted = GREETING + encode_ready(b"SUB")
    return [
        Seed("sub", greeted + subscribe),
        Seed("many", greeted + b"".join(b"\x00\x0c\x01masks/gate/" for _ in range(50))),
        Seed("xsub", GREETING + encode_ready(b"XSUB") + b"\x00\x05\x00gate"),
        Seed("ping", greeted + b"\x04\x07\x04PING\x00\x00" + subscribe),
        Seed("dealer", GREETING + encode_ready(b"DEALER") + b"\x01\x00\x00\x02{}"),
        Seed("tls", bytes.fromhex("16030100c8010000c40303") + bytes(32)),
        Seed("http", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    ]


def _connect_peers(_folder: Path, _name: str, data: bytes) -> None:
    """Send the bytes to each socket of a publisher; a good subscriber must still get results."""
    with _publisher() as publisher, connect(publisher.masks_endpoint, timeout=20) as subscription:
        publisher.wait_for_subscribers()
        for endpoint in publisher.publisher.endpoints.values():
            with contextlib.suppress(OSError), raw_peer(endpoint) as peer:
                peer.sendall(data)
                peer.settimeout(0.05)
                while peer.recv(65536):
                    pass
        publisher.put(result(1))
        assert subscription.receive() is not None


@contextlib.contextmanager
def _publisher() -> Iterator[Service]:
    running = Service().start()
    try:
        yield running
    finally:
        running.publisher.results.abort()
        running.publisher.images.abort()
        running.join()


def _requests() -> Sequence[Seed]:
    def request(line: str, body: str = "") -> bytes:
        kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
        return f"{line} HTTP/1.1\r\nHost: localhost\r\n{kind}\r\n{body}".encode()

    thresholds = '{"score": 0.5, "classes": ["person"], "region": [[0,0],[9,0],[9,9]]}'
    return [
        Seed("sources", request("GET /v1/sources")),
        Seed("add", request("POST /v1/sources", '{"url": "test:?size=64x48", "name": "yard"}')),
        Seed("remove", request("DELETE /v1/sources/gate")),
        Seed("pause", request("POST /v1/sources/gate/pause")),
        Seed("thresholds", request("PUT /v1/thresholds", thresholds)),
        Seed("own", request("PUT /v1/sources/gate/thresholds", '{"score_by_class": {"car": 0.1}}')),
        Seed("metrics", request("GET /metrics")),
    ]


def _mutate_request(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    return mutate_text(random, data, others, _CONTROL_TOKENS)


def _send_request(_folder: Path, _name: str, data: bytes) -> None:
    """Send the bytes to the control port of a service, which must stay healthy and end in order."""
    config = Config(
        sources=(SourceConfig(url="test:?live=1&size=64x48&fps=5", name="gate"),),
        model=ModelConfig(weights="none", input_size=64),
        publish=PublishConfig(bind="tcp://127.0.0.1:*"),
        control=ControlConfig(bind="127.0.0.1:0"),
    )
    service = LiveService(config, load_model("nanomask", weights="none", input_size=64))
    operation = Supervisor(service, config, None)
    address = str(operation.http_api_address)
    thread = threading.Thread(target=operation.run, daemon=True)
    thread.start()
    port = int(address.rpartition(":")[2])
    wait_until(lambda: _is_up(address))
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as peer:
        peer.sendall(data)
        peer.settimeout(0.3)
        while answer := peer.recv(65536):
            assert b" 500 " not in answer.partition(b"\r\n")[0], f"answers {answer[:200]!r}"
    assert _is_up(address), "not healthy afterwards"
    operation.stop()
    thread.join(_ALIVE_SECONDS)
    assert not thread.is_alive(), "the service does not end"


def _is_up(address: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/healthz", timeout=20):  # noqa: S310 - http, to ourselves
        return True
    return False


TARGETS = (
    Target("stream", _streams, _mutate_stream, _read_stream, memory_mib=300, weight=20),
    Target("message", _messages, _mutate_messages, _receive_messages, memory_mib=200, weight=4),
    Target("peer", _peers, mutate_bytes, _connect_peers, memory_mib=200, weight=3),
    Target(
        "request", _requests, _mutate_request, _send_request, memory_mib=300, seconds=30, weight=1
    ),
)
