"""Tests of protocol messages: golden files, limits, topics, addresses, JavaScript decoder."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support.paths import ROOT, TESTS
from support.publishers import instances, panoptic_result, result

from streamseg import protocol
from streamseg.errors import UsageError, WireError
from streamseg.protocol.address import Address
from streamseg.protocol.messages import (
    MasksMessage,
    RecordedMessage,
    ReplayAnswer,
    ReplayRequest,
    StatusMessage,
)
from streamseg.structures.masks import Masks
from streamseg.structures.results import Instances

GOLDEN = TESTS / "golden"


def masks_message(published, seq=0) -> MasksMessage:
    return protocol.masks_message(
        protocol.recorded_message(published, seq),
        published,
        service="5f2c9a1e",
        published_at=1790000000.25,
        age_ms=41.5,
        dropped={"publisher_late": 2},
    )


def golden_results():
    """Return the results of the golden messages, with fixed times."""
    plain, panoptic = result(7), panoptic_result()
    times = {"captured_at": 1790000000.125, "item": None}
    boxed = Instances(
        np.array([[1.5, 2.5, 20.25, 30.125]], np.float32),
        np.array([0.1], np.float32),
        np.array([3]),
        Masks.from_boxes([[1.5, 2.5, 20.25, 30.125]], (40, 60)),
        {3: 'voiture "é"'},
    )
    from_box = replace(plain, instances=boxed)
    empty = replace(plain, instances=instances(0))
    return {
        "masks": replace(plain, frame=replace(plain.frame, **times)),
        "masks_panoptic": replace(panoptic, frame=replace(panoptic.frame, **times)),
        "masks_from_box": replace(
            from_box, frame=replace(plain.frame, **times | {"item": "naïve 1.png"})
        ),
        "masks_empty": replace(empty, frame=replace(plain.frame, **times)),
    }


def golden_messages() -> dict[str, bytes]:
    lines = {name: protocol.encode(masks_message(item)) for name, item in golden_results().items()}
    recorded = protocol.recorded_message(golden_results()["masks"], 7)
    status = StatusMessage(
        v=1,
        service="5f2c9a1e",
        source="gate",
        seq=12,
        state="stalled",
        reason="no frame for 3 s",
        epoch=1,
        decoded=100,
        published=90,
        dropped={"inbox_full": 5},
        failed={"corrupt": 2},
        in_flight=3,
        endpoints={
            "masks": "tcp://127.0.0.1:5555",
            "frames": "tcp://127.0.0.1:5556",
            "replay": "tcp://127.0.0.1:5557",
        },
    )
    service = msgspec.structs.replace(status, source="", state="ended", reason="")
    request = protocol.ReplayRequest(v=1, service="5f2c9a1e", source="gate", since=41)
    answer = protocol.ReplayAnswer(
        v=1, service="5f2c9a1e", source="gate", complete=True, first=42, last=57
    )
    return lines | {
        "replay_request": protocol.encode(request),
        "replay_answer": protocol.encode(answer),
        "recorded": protocol.encode(recorded),
        "status": protocol.encode(status),
        "status_service": protocol.encode(service),
    }


KINDS = {
    "recorded": RecordedMessage,
    "status": StatusMessage,
    "status_service": StatusMessage,
    "replay_request": ReplayRequest,
    "replay_answer": ReplayAnswer,
}


@pytest.mark.parametrize("name", sorted(golden_messages()))
def test_golden_messages_round_trip(name) -> None:
    golden = (GOLDEN / f"{name}.json").read_bytes().rstrip(b"\n")
    assert golden_messages()[name] == golden, "the encoding has changed"
    message = protocol.decode(golden, KINDS.get(name, MasksMessage))
    assert protocol.encode(message) == golden, "decoding and encoding changed the message"


def test_every_golden_file_has_a_message() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(golden_messages())


def test_golden_messages_decode_to_the_original_results() -> None:
    for name, original in golden_results().items():
        message = protocol.decode((GOLDEN / f"{name}.json").read_bytes(), MasksMessage)
        decoded = protocol.decode_instances(message)
        assert decoded.masks == original.instances.masks
        assert (decoded.masks.from_box == original.instances.masks.from_box).all()
        assert decoded.names == original.instances.names
        segments = protocol.decode_segments(message)
        assert (segments is None) == (original.segments is None)


def test_a_recorded_message_omits_fields_that_do_not_depend_on_the_input() -> None:
    live = set(msgspec.json.decode((GOLDEN / "masks.json").read_bytes()))
    recorded = set(msgspec.json.decode((GOLDEN / "recorded.json").read_bytes()))
    assert live - recorded == {
        "service",
        "captured_at",
        "published_at",
        "age_ms",
        "timing",
        "dropped",
    }
    assert recorded < live


def test_an_encoded_message_is_one_line() -> None:
    renamed = replace(instances(), categories={1: "two\nlines", 3: "\u2028"})
    assert b"\n" not in protocol.encode(masks_message(result(found=renamed)))


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(hnp.arrays(np.float32, (3, 4), elements=finite), hnp.arrays(np.float32, 3, elements=finite))
def test_float32_values_round_trip_exactly(boxes, scores) -> None:
    original = replace(instances(3), boxes=boxes, scores=scores)
    raw = protocol.encode(masks_message(result(found=original)))
    decoded = protocol.decode_instances(protocol.decode(raw, MasksMessage))
    assert decoded.boxes.tobytes() == boxes.tobytes()
    assert decoded.scores.tobytes() == scores.tobytes()


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_times_round_trip_exactly(seconds) -> None:
    original = result()
    frame = replace(original.frame, pts=seconds, captured_at=seconds)
    raw = protocol.encode(masks_message(replace(original, frame=frame)))
    message = protocol.decode(raw, MasksMessage)
    assert (message.pts, message.captured_at) == (seconds, seconds)


def test_undecodable_bytes_of_a_file_name_are_escaped() -> None:
    original = result()
    frame = replace(original.frame, item="caf\udce9.png")
    raw = protocol.encode(masks_message(replace(original, frame=frame)))
    message = protocol.decode(raw, MasksMessage)
    assert message.item == "caf%E9.png"


def test_unknown_keys_are_ignored() -> None:
    raw = (GOLDEN / "masks.json").read_bytes().replace(b'{"v":1', b'{"new":[{}],"v":1')
    assert protocol.decode(raw, MasksMessage) == protocol.decode(
        (GOLDEN / "masks.json").read_bytes(), MasksMessage
    )


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"", "not a MasksMessage"),
        (b"[" * 1_000_000, "not a MasksMessage"),
        (b'{"v":1}', "missing required field"),
        (b" " * (protocol.MAX_JSON_BYTES + 1), "exceeds the limit"),
        (b"\x80\x04K\x01.", "not a MasksMessage"),
    ],
)
def test_an_invalid_message_is_a_wire_error(raw, error) -> None:
    with pytest.raises(WireError, match=error):
        protocol.decode(raw, MasksMessage)


def test_a_message_of_the_maximum_length_is_decoded() -> None:
    raw = (GOLDEN / "masks.json").read_bytes()
    padded = raw.ljust(protocol.MAX_JSON_BYTES)
    assert protocol.decode(padded, MasksMessage) == protocol.decode(raw, MasksMessage)


def test_another_protocol_version_is_refused() -> None:
    raw = (GOLDEN / "masks.json").read_bytes().replace(b'{"v":1', b'{"v":2')
    with pytest.raises(WireError, match="protocol version 2; this client reads 1"):
        protocol.decode(raw, MasksMessage)


def test_too_many_instances_are_refused() -> None:
    message = masks_message(result())
    rows = message.instances[:1] * (protocol.MAX_INSTANCES + 1)
    raw = protocol.encode(msgspec.structs.replace(message, instances=rows))
    with pytest.raises(WireError, match="10000"):
        protocol.decode(raw, MasksMessage)


def _encode_runs(runs) -> str:
    """Encode valid or invalid runs as COCO counts (``rleToString``)."""
    characters = []
    for i, run in enumerate(runs):
        value = run - runs[i - 2] if i > 2 else run
        more = True
        while more:
            code, value = value & 31, value >> 5
            more = value != (-1 if code & 16 else 0)
            characters.append(chr((code | 32 * more) + 48))
    return "".join(characters)


def _wrapping_runs(total: int) -> list[int]:
    """Return runs whose sum is ``total`` modulo 2**64."""
    count = 65536
    step, rest = divmod(2**64 + total, count * (count + 1) // 2)
    runs = [rest]
    for i in range(1, count + 1):
        runs += [i * step, 0]
    return runs


@pytest.mark.parametrize(
    "runs",
    [
        [],
        [2399],
        [2401],
        [2400, 1],
        [0, 2399],
        [-1, 2401],
        [0, 3000, -600],
        [2**34],
        _wrapping_runs(2400),
    ],
    ids=lambda runs: f"{len(runs)} runs",
)
def test_runs_that_do_not_fill_the_frame_are_refused(runs) -> None:
    message = masks_message(result())
    row = msgspec.structs.replace(message.instances[0], rle=_encode_runs(runs))
    rows = [message.instances[1], row]
    with pytest.raises(WireError, match="gate: frame 0: "):
        protocol.decode_instances(msgspec.structs.replace(message, instances=rows))
    segment = protocol.SegmentMessage(
        id=1, label=1, class_name="x", thing=True, area=1, rle=row.rle
    )
    with pytest.raises(WireError, match="gate: frame 0: "):
        protocol.decode_segments(msgspec.structs.replace(message, segments=[segment]))


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e39])
def test_values_outside_float32_are_refused(value) -> None:
    message = masks_message(result())
    row = message.instances[0]
    for changed in (
        msgspec.structs.replace(row, score=value),
        msgspec.structs.replace(row, box=(0.0, value, 1.0, 1.0)),
    ):
        with pytest.raises(WireError, match="isn't finite"):
            protocol.decode_instances(msgspec.structs.replace(message, instances=[changed]))


# Topics and addresses


@pytest.mark.parametrize("kind", ["masks", "frames", "video", "status"])
def test_the_topic_of_a_source_is_no_prefix_of_a_longer_name(kind) -> None:
    assert protocol.parse_topic(protocol.topic(kind, "gate")) == (kind, "gate")
    assert not protocol.topic(kind, "gate2").startswith(protocol.topic(kind, "gate"))
    assert len(protocol.topic(kind, "x" * 64)) <= protocol.MAX_TOPIC_BYTES


def test_the_status_of_the_service_has_no_source() -> None:
    assert protocol.topic("status", "") == b"status//"
    assert protocol.parse_topic(b"status//") == ("status", "")


@pytest.mark.parametrize(
    "raw",
    [
        *[b"", b"/", b"masks", b"masks/", b"masks//", b"masks/a", b"Masks/a/", b"masks/a b/"],
        *[b"masks/a//", b"masks/\xff/", b"masks/" + b"x" * 65 + b"/", b"status/a\n/"],
    ],
)
def test_an_invalid_topic_is_a_wire_error(raw) -> None:
    with pytest.raises(WireError):
        protocol.parse_topic(raw)


@pytest.mark.parametrize(
    ("text", "images", "replay", "is_loopback"),
    [
        ("tcp://127.0.0.1:5555", "tcp://127.0.0.1:5556", "tcp://127.0.0.1:5557", True),
        ("tcp://127.1.2.3:*", "tcp://127.1.2.3:*", "tcp://127.1.2.3:*", True),
        ("tcp://localhost:5555", "tcp://localhost:5556", "tcp://localhost:5557", True),
        ("tcp://[::1]:5555", "tcp://[::1]:5556", "tcp://[::1]:5557", True),
        ("tcp://*:5555", "tcp://*:5556", "tcp://*:5557", False),
        ("tcp://0.0.0.0:5555", "tcp://0.0.0.0:5556", "tcp://0.0.0.0:5557", False),
        ("tcp://[::]:5555", "tcp://[::]:5556", "tcp://[::]:5557", False),
        ("tcp://192.0.2.7:5555", "tcp://192.0.2.7:5556", "tcp://192.0.2.7:5557", False),
        (
            "tcp://cam-host.example:5555",
            "tcp://cam-host.example:5556",
            "tcp://cam-host.example:5557",
            False,
        ),
        ("ipc:///tmp/x", "ipc:///tmp/x-frames", "ipc:///tmp/x-replay", True),
        ("ipc://*", "ipc://*", "ipc://*", True),
    ],
)
def test_derived_addresses_and_loopback_of_an_address(text, images, replay, is_loopback) -> None:
    address = Address.parse(text)
    assert str(address) == text
    assert str(address.for_images) == images
    assert str(address.for_replay) == replay
    assert address.is_loopback == is_loopback


@pytest.mark.parametrize("path", ["/tmp/a\0b", "/" + "x" * 107, "/" + "é" * 54])
def test_an_ipc_path_is_at_most_107_bytes_without_nul(path) -> None:
    assert Address.parse("ipc:///" + "x" * 106).host == "/" + "x" * 106
    with pytest.raises(UsageError, match="at most 107 bytes"):
        Address.parse(f"ipc://{path}")


def test_the_last_port_has_no_port_for_images() -> None:
    with pytest.raises(UsageError, match="has no next port"):
        _ = Address.parse("tcp://127.0.0.1:65535").for_images


@pytest.mark.parametrize("port", [65534, 65535])
def test_the_last_two_ports_have_no_port_for_replay(port) -> None:
    assert Address.parse("tcp://127.0.0.1:65533").for_replay.port == 65535
    with pytest.raises(UsageError, match=r"no port \+ 2 for replay"):
        _ = Address.parse(f"tcp://127.0.0.1:{port}").for_replay


# Protocol page and JavaScript decoder


def test_the_protocol_page_is_up_to_date() -> None:
    completed = subprocess.run(
        [sys.executable, "tools/protocol_doc.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.parametrize("name", [*sorted(golden_results()), "recorded"])
def test_javascript_decodes_the_same_masks(name) -> None:
    raw = (GOLDEN / f"{name}.json").read_bytes()
    message = protocol.decode(raw, RecordedMessage)
    decoded = protocol.decode_instances(message)
    rows = [json.loads(line) for line in _run_decoder(raw).splitlines()]
    assert [row["area"] for row in rows] == decoded.masks.areas.tolist()
    assert [row["name"] for row in rows] == decoded.names
    assert [row["track"] for row in rows] == decoded.track_ids.tolist()
    for row, mask in zip(rows, decoded.masks, strict=True):
        assert row["pixels"] == np.flatnonzero(mask.to_array())[:5].tolist()
        assert row["box"] == mask.box.tolist()


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.parametrize("runs", [[2399], [2401], [-1, 2401], [2**33]])
def test_javascript_refuses_runs_that_do_not_fill_the_frame(runs) -> None:
    message = masks_message(result())
    row = msgspec.structs.replace(message.instances[0], rle=_encode_runs(runs))
    raw = protocol.encode(msgspec.structs.replace(message, instances=[row]))
    with pytest.raises(subprocess.CalledProcessError) as caught:
        _run_decoder(raw)
    assert "not a mask of 40 x 60" in caught.value.stderr


def _run_decoder(raw: bytes) -> str:
    completed = subprocess.run(
        ["node", "examples/decode.mjs", "--json"],
        cwd=ROOT,
        input=raw.decode(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return completed.stdout
