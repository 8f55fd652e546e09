"""Writes the generated parts of docs/protocol.md: messages, limits, golden examples.

python tools/protocol_doc.py            writes the page
python tools/protocol_doc.py --check    exit 1 if the page isn't what would be written
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from inspect import getdoc
from pathlib import Path
from typing import Any

import msgspec

from streamseg import client, protocol
from streamseg.sinks.zmq import connection_limiter, endpoints, replay
from streamseg.structures import masks

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "protocol.md"
GOLDEN = ROOT / "tests" / "golden"
MESSAGES = (
    protocol.MasksMessage,
    protocol.InstanceMessage,
    protocol.SegmentMessage,
    protocol.StatusMessage,
    protocol.RecordedMessage,
    protocol.ReplayRequest,
    protocol.ReplayAnswer,
)
EXAMPLES = {
    "masks": protocol.MasksMessage,
    "masks_panoptic": protocol.MasksMessage,
    "status": protocol.StatusMessage,
    "replay_request": protocol.ReplayRequest,
    "replay_answer": protocol.ReplayAnswer,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    page = PAGE.read_text(encoding="utf-8")
    written = fill(page, {"messages": messages(), "limits": limits(), "examples": examples()})
    if check and written != page:
        sys.exit(f"{PAGE.relative_to(ROOT)} is out of date: run python tools/protocol_doc.py")
    PAGE.write_text(written, encoding="utf-8")


def fill(page: str, parts: dict[str, str]) -> str:
    """``page`` with what is between each pair of markers replaced."""
    for name, text in parts.items():
        begin, end = f"<!-- generated: {name} -->", f"<!-- end: {name} -->"
        before, found, rest = page.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            sys.exit(f"{PAGE.relative_to(ROOT)} has no {begin} … {end}")
        page = f"{before}{begin}\n{text}\n{end}{after}"
    return page


def messages() -> str:
    return "\n\n".join(_message(kind) for kind in MESSAGES)


def limits() -> str:
    mebi = 1024 * 1024
    rows = [
        ("a JSON part", f"{protocol.MAX_JSON_BYTES // mebi} MiB"),
        ("a JPEG part", f"{protocol.MAX_JPEG_BYTES // mebi} MiB"),
        ("instances, or segments, of a frame", f"{protocol.MAX_INSTANCES:,}"),
        ("pixels of a frame (the client's `max_pixels`)", f"{masks.MAX_PIXELS:,}"),
        ("a subscription", f"{protocol.MAX_TOPIC_BYTES} bytes"),
        ("a message from a subscriber", f"{endpoints.MAX_INCOMING} bytes"),
        (
            "all that a subscriber sends over TCP",
            (
                f"{connection_limiter.MAY_SEND_AT_ONCE // 1024} KiB, and "
                f"{connection_limiter.MAY_SEND_A_SECOND} bytes a second"
            ),
        ),
        ("queued at the publisher, for one subscriber to masks", _messages(endpoints.MASKS_QUEUED)),
        (
            "queued at the publisher, for one subscriber to pictures",
            _messages(endpoints.FRAMES_QUEUED),
        ),
        ("a request for replay", f"{replay.MAX_REQUEST} bytes"),
        (
            "an answer to it",
            f"{replay.ANSWER_MESSAGES} messages; several, {replay.ANSWER_BYTES // mebi} MiB",
        ),
        ("queued at the publisher, for one who asks", _messages(replay.ANSWERS_QUEUED)),
        ("kept for replay, of all sources", f"{replay.DEFAULT_BYTES // mebi} MiB"),
        ("queued in the Python client: masks", _messages(client.MASKS_QUEUED)),
        ("queued in the Python client: pictures", _messages(client.FRAMES_QUEUED)),
        ("held back in the Python client while older ones are missing", _messages(client.HELD)),
        ("names of sources that the Python client takes", f"{client.MAX_SOURCES:,}"),
    ]
    return _table(("what", "at most"), rows)


def examples() -> str:
    parts = []
    for name, kind in EXAMPLES.items():
        raw = (GOLDEN / f"{name}.json").read_bytes()
        pretty = msgspec.json.format(protocol.encode(protocol.decode(raw, kind)), indent=2).decode()
        parts.append(f"`tests/golden/{name}.json`:\n\n```json\n{pretty}\n```")
    return "\n\n".join(parts)


def _message(kind: type[protocol.Message]) -> str:
    documentation = getdoc(kind) or ""
    summary, _, attributes = documentation.partition("Attributes:\n")
    inherited = dict(_attributes(getdoc(protocol.RecordedMessage) or ""))
    meanings = inherited | dict(_attributes(attributes))
    schemas, components = msgspec.json.schema_components([kind], ref_template="{name}")
    schema = components[schemas[0]["$ref"]]
    optional = set(schema["properties"]) - set(schema["required"])
    names = dict(zip(kind.__struct_encode_fields__, kind.__struct_fields__, strict=True))
    rows = [
        (f"`{key}`", _type(spec) + (", optional" if key in optional else ""), meanings[names[key]])
        for key, spec in schema["properties"].items()
    ]
    said = summary.strip().replace("``", "`")
    return f"### {kind.__name__}\n\n{said}\n\n{_table(('key', 'type', 'meaning'), rows)}"


def _attributes(text: str) -> Iterator[tuple[str, str]]:
    """(name, meaning) of each entry of an ``Attributes:`` section."""
    section = text.partition("Attributes:\n")[2] or text
    for entry in re.findall(r"^ {4}(\w+): (.*(?:\n {8,}.*)*)", section, re.MULTILINE):
        yield entry[0], " ".join(entry[1].split()).replace("``", "`")


def _type(spec: dict[str, Any]) -> str:  # noqa: PLR0911 - one a case
    """A JSON schema in a few words."""
    match spec:
        case {"$ref": name}:
            return f"[{name}](#{name.lower()})"
        case {"anyOf": options}:
            return " or ".join(_type(option) for option in options)
        case {"enum": _}:
            return "string"
        case {"prefixItems": items}:
            return f"[{', '.join(_type(item) for item in items)}]"
        case {"type": "array", "items": item}:
            return f"list of {_type(item)}"
        case {"type": "object", "additionalProperties": value}:
            return f"object of {_type(value)}"
    return str(spec["type"])


def _messages(count: int) -> str:
    return f"{count} messages"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
