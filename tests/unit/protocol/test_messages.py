"""Messages: exact, checked, the same for ever (golden files) and readable in another language."""

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
from streamseg.protocol.messages import (
    Address,
    MasksMessage,
    RecordedMessage,
    ReplayAnswer,
    ReplayRequest,
    StatusMessage,
)
from streamseg.structures.masks import Masks
from streamseg.structures.results import Instances

GOLDEN = TESTS / "golden"


def masks_message(made, seq=0) -> MasksMessage:
    return protocol.masks_message(
        protocol.recorded_message(made, seq),
        made,
        service="5f2c9a1e",
        published_at=1790000000.25,
        age_ms=41.5,
        dropped={"publisher_late": 2},
    )


def golden_results():
    """The results that the golden messages are of; their moment is fixed."""
    plain, panoptic = result(7), panoptic_result()
    at = {"captured_at": 1790000000.125, "item": None}
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
        "masks": replace(plain, frame=replace(plain.frame, **at)),
        "masks_panoptic": replace(panoptic, frame=replace(panoptic.frame, **at)),
        "masks_from_box": replace(
            from_box, frame=replace(plain.frame, **at | {"item": "naïve 1.png"})
        ),
        "masks_empty": replace(empty, frame=replace(plain.frame, **at)),
    }


def golden_messages() -> dict[str, bytes]:
    lines = {name: protocol.encode(masks_message(made)) for name, made in golden_results().items()}
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
def test_golden_messages_are_read_and_written_the_same(name) -> None:
    golden = (GOLDEN / f"{name}.json").read_bytes().rstrip(b"\n")
    assert golden_messages()[name] == golden, "what is written has changed"
    message = protocol.decode(golden, KINDS.get(name, MasksMessage))
    assert protocol.encode(message) == golden, "what is read is not what was written"


def test_there_is_a_golden_message_for_each_and_no_other() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(golden_messages())


def test_a_golden_message_holds_what_it_was_made_of() -> None:
    for name, made in golden_results().items():
        message = protocol.decode((GOLDEN / f"{name}.json").read_bytes(), MasksMessage)
        found = protocol.decode_instances(message)
        assert found.masks == made.instances.masks
        assert (found.masks.from_box == made.instances.masks.from_box).all()
        assert found.names == made.instances.names
        segments = protocol.decode_segments(message)
        assert (segments is None) == (made.segments is None)


def test_a_recorded_line_leaves_out_what_does_not_depend_on_the_input() -> None:
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


def test_a_frame_takes_a_line() -> None:
    found = replace(instances(), categories={1: "two\nlines", 3: "\u2028"})
    assert b"\n" not in protocol.encode(masks_message(result(found=found)))


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(hnp.arrays(np.float32, (3, 4), elements=finite), hnp.arrays(np.float32, 3, elements=finite))
def test_float32_values_come_back_the_same(boxes, scores) -> None:
    found = replace(instances(3), boxes=boxes, scores=scores)
    message = protocol.decode(protocol.encode(masks_message(result(found=found))), MasksMessage)
    back = protocol.decode_instances(message)
    assert back.boxes.tobytes() == boxes.tobytes()
    assert back.scores.tobytes() == scores.tobytes()


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_times_come_back_the_same(moment) -> None:
    made = result()
    made = replace(made, frame=replace(made.frame, pts=moment, captured_at=moment))
    message = protocol.decode(protocol.encode(masks_message(made)), MasksMessage)
    assert (message.pts, message.captured_at) == (moment, moment)


def test_a_file_name_that_is_no_text_can_still_be_sent() -> None:
    made = result()
    made = replace(made, frame=replace(made.frame, item="caf\udce9.png"))
    message = protocol.decode(protocol.encode(masks_message(made)), MasksMessage)
    assert message.item == "caf%E9.png"


def test_keys_of_a_newer_service_are_ignored() -> None:
    raw = (GOLDEN / "masks.json").read_bytes().replace(b'{"v":1', b'{"new":[{}],"v":1')
    assert protocol.decode(raw, MasksMessage) == protocol.decode(
        (GOLDEN / "masks.json").read_bytes(), MasksMessage
    )


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "not a MasksMessage"),
        (b"[" * 1_000_000, "not a MasksMessage"),
        (b'{"v":1}', "missing required field"),
        (b" " * (protocol.MAX_JSON_BYTES + 1), "over the limit"),
        (b"\x80\x04K\x01.", "not a MasksMessage"),
    ],
)
def test_what_is_no_message_is_a_wire_error(raw, said) -> None:
    with pytest.raises(WireError, match=said):
        protocol.decode(raw, MasksMessage)


def test_another_version_is_refused_by_its_number() -> None:
    raw = (GOLDEN / "masks.json").read_bytes().replace(b'{"v":1', b'{"v":2')
    with pytest.raises(WireError, match="protocol version 2; this client reads 1"):
        protocol.decode(raw, MasksMessage)


def test_too_many_instances_are_refused_before_they_are_looked_at() -> None:
    message = masks_message(result())
    rows = message.instances[:1] * (protocol.MAX_INSTANCES + 1)
    raw = protocol.encode(msgspec.structs.replace(message, instances=rows))
    with pytest.raises(WireError, match="10000"):
        protocol.decode(raw, MasksMessage)


def _counts(runs) -> str:
    """COCO's code of any runs, possible or not (``rleToString``)."""
    out = []
    for i, run in enumerate(runs):
        left = run - runs[i - 2] if i > 2 else run
        more = True
        while more:
            code, left = left & 31, left >> 5
            more = left != (-1 if code & 16 else 0)
            out.append(chr((code | 32 * more) + 48))
    return "".join(out)


def _wrapping_runs(total: int) -> list[int]:
    """Runs whose sum is ``total`` modulo 2**64."""
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
    row = msgspec.structs.replace(message.instances[0], rle=_counts(runs))
    rows = [message.instances[1], row]
    with pytest.raises(WireError, match="gate: frame 0: "):
        protocol.decode_instances(msgspec.structs.replace(message, instances=rows))
    part = protocol.SegmentMessage(id=1, label=1, class_name="x", thing=True, area=1, rle=row.rle)
    with pytest.raises(WireError, match="gate: frame 0: "):
        protocol.decode_segments(msgspec.structs.replace(message, segments=[part]))


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e39])
def test_values_that_are_not_float32_are_refused(value) -> None:
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
def test_topics_end_so_that_no_prefix_matches_a_longer_name(kind) -> None:
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
def test_what_is_no_topic_is_a_wire_error(raw) -> None:
    with pytest.raises(WireError):
        protocol.parse_topic(raw)


@pytest.mark.parametrize(
    ("text", "pictures", "replay", "loopback"),
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
def test_an_address_knows_its_neighbours_and_who_can_reach_it(
    text, pictures, replay, loopback
) -> None:
    address = Address.parse(text)
    assert str(address) == text
    assert str(address.for_images) == pictures
    assert str(address.for_replay) == replay
    assert address.is_loopback == loopback


def test_the_last_port_has_no_neighbour() -> None:
    with pytest.raises(UsageError, match="has no next port"):
        _ = Address.parse("tcp://127.0.0.1:65535").for_images


@pytest.mark.parametrize("port", [65534, 65535])
def test_a_port_without_a_next_but_one_has_no_place_for_replay(port) -> None:
    assert Address.parse("tcp://127.0.0.1:65533").for_replay.port == 65535
    with pytest.raises(UsageError, match="no port for replay"):
        _ = Address.parse(f"tcp://127.0.0.1:{port}").for_replay


# The page, and another language


def test_the_protocol_page_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "tools/protocol_doc.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.parametrize("name", [*sorted(golden_results()), "recorded"])
def test_javascript_decodes_the_same_masks(name) -> None:
    raw = (GOLDEN / f"{name}.json").read_bytes()
    message = protocol.decode(raw, RecordedMessage)
    found = protocol.decode_instances(message)
    rows = [json.loads(line) for line in _node(raw).splitlines()]
    assert [row["area"] for row in rows] == found.masks.areas.tolist()
    assert [row["name"] for row in rows] == found.names
    assert [row["track"] for row in rows] == found.track_ids.tolist()
    for row, mask in zip(rows, found.masks, strict=True):
        assert row["pixels"] == np.flatnonzero(mask.to_array())[:5].tolist()
        assert row["box"] == mask.box.tolist()


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.parametrize("runs", [[2399], [2401], [-1, 2401], [2**33]])
def test_javascript_refuses_runs_that_do_not_fill_the_frame(runs) -> None:
    message = masks_message(result())
    row = msgspec.structs.replace(message.instances[0], rle=_counts(runs))
    raw = protocol.encode(msgspec.structs.replace(message, instances=[row]))
    with pytest.raises(subprocess.CalledProcessError) as caught:
        _node(raw)
    assert "not a mask of 40 x 60" in caught.value.stderr


def _node(raw: bytes) -> str:
    done = subprocess.run(
        ["node", "examples/decode.mjs", "--json"],
        cwd=ROOT,
        input=raw.decode(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout
