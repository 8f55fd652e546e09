"""Generator of the tables in docs/protocol.md: messages, limits and golden examples.

python tools/protocol_doc.py            write the page
python tools/protocol_doc.py --check    exit with 1 if the page is out of date
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
    updated = replace_generated_parts(
        page,
        {
            "messages": format_messages(),
            "limits": format_limits(),
            "examples": format_examples(),
        },
    )
    if check and updated != page:
        sys.exit(f"{PAGE.relative_to(ROOT)} is out of date: run python tools/protocol_doc.py")
    PAGE.write_text(updated, encoding="utf-8")


def replace_generated_parts(page: str, parts: dict[str, str]) -> str:
    """Replace the text between each pair of markers, by name of the part."""
    for name, text in parts.items():
        start, end = f"<!-- generated: {name} -->", f"<!-- end: {name} -->"
        before, start_found, rest = page.partition(start)
        _, end_found, after = rest.partition(end)
        if not (start_found and end_found):
            sys.exit(f"{PAGE.relative_to(ROOT)} has no {start} … {end}")
        page = f"{before}{start}\n{text}\n{end}{after}"
    return page


def format_messages() -> str:
    """Return one section with a table for each message type."""
    return "\n\n".join(_format_message(kind) for kind in MESSAGES)


def format_limits() -> str:
    """Return the table of limits."""
    mebi = 1024 * 1024
    answer_mebi = replay.MAX_ANSWER_BYTES // mebi
    rows = [
        ("JSON part", f"{protocol.MAX_JSON_BYTES // mebi} MiB"),
        ("JPEG part", f"{protocol.MAX_JPEG_BYTES // mebi} MiB"),
        ("instances, and segments, per frame", f"{protocol.MAX_INSTANCES:,}"),
        ("pixels per frame (`max_pixels` of the client)", f"{masks.MAX_PIXELS:,}"),
        ("subscription", f"{protocol.MAX_TOPIC_BYTES} bytes"),
        ("message from a subscriber", f"{endpoints.MAX_INCOMING} bytes"),
        (
            "data sent by a subscriber over TCP",
            (
                f"{connection_limiter.MAX_BURST_BYTES // 1024} KiB, plus "
                f"{connection_limiter.MAX_BYTES_PER_SECOND} bytes per second"
            ),
        ),
        ("publisher queue per subscriber: masks", _count_messages(endpoints.MASKS_QUEUED)),
        (
            "publisher queue per subscriber: images",
            _count_messages(endpoints.FRAMES_QUEUED),
        ),
        ("replay request", f"{replay.MAX_REQUEST_BYTES} bytes"),
        (
            "replay answer",
            f"{replay.MAX_ANSWER_MESSAGES} messages, and {answer_mebi} MiB if several",
        ),
        ("publisher queue per replay client", _count_messages(replay.MAX_QUEUED_ANSWERS)),
        ("replay buffer, all sources", f"{replay.DEFAULT_BYTES // mebi} MiB"),
        ("queue of the Python client: masks", _count_messages(client.MASKS_QUEUED)),
        ("queue of the Python client: images", _count_messages(client.FRAMES_QUEUED)),
        (
            "messages that the Python client holds back while older ones are missing",
            _count_messages(client.MAX_BUFFERED_MESSAGES),
        ),
        ("sources per Python client", f"{client.MAX_SOURCES:,}"),
    ]
    return _format_table(("limited quantity", "maximum"), rows)


def format_examples() -> str:
    """Return the golden messages, indented."""
    parts = []
    for name, kind in EXAMPLES.items():
        raw = (GOLDEN / f"{name}.json").read_bytes()
        pretty = msgspec.json.format(protocol.encode(protocol.decode(raw, kind)), indent=2).decode()
        parts.append(f"`tests/golden/{name}.json`:\n\n```json\n{pretty}\n```")
    return "\n\n".join(parts)


def _format_message(kind: type[protocol.Message]) -> str:
    documentation = getdoc(kind) or ""
    summary, _, attributes = documentation.partition("Attributes:\n")
    inherited = dict(_parse_attributes(getdoc(protocol.RecordedMessage) or ""))
    descriptions = inherited | dict(_parse_attributes(attributes))
    schemas, components = msgspec.json.schema_components([kind], ref_template="{name}")
    schema = components[schemas[0]["$ref"]]
    optional = set(schema["properties"]) - set(schema["required"])
    names = dict(zip(kind.__struct_encode_fields__, kind.__struct_fields__, strict=True))
    rows = [
        (
            f"`{key}`",
            _describe_type(spec) + (", optional" if key in optional else ""),
            descriptions[names[key]],
        )
        for key, spec in schema["properties"].items()
    ]
    text = summary.strip().replace("``", "`")
    table = _format_table(("key", "type", "description"), rows)
    return f"### {kind.__name__}\n\n{text}\n\n{table}"


def _parse_attributes(text: str) -> Iterator[tuple[str, str]]:
    """Yield (name, description) of each entry of an ``Attributes:`` section."""
    section = text.partition("Attributes:\n")[2] or text
    for entry in re.findall(r"^ {4}(\w+): (.*(?:\n {8,}.*)*)", section, re.MULTILINE):
        yield entry[0], " ".join(entry[1].split()).replace("``", "`")


def _describe_type(spec: dict[str, Any]) -> str:  # noqa: PLR0911 - one return per case
    """Describe the type of a JSON schema in a few words."""
    match spec:
        case {"$ref": name}:
            return f"[{name}](#{name.lower()})"
        case {"anyOf": options}:
            return " or ".join(_describe_type(option) for option in options)
        case {"enum": _}:
            return "string"
        case {"prefixItems": items}:
            return f"[{', '.join(_describe_type(item) for item in items)}]"
        case {"type": "array", "items": item}:
            return f"list of {_describe_type(item)}"
        case {"type": "object", "additionalProperties": value}:
            return f"object of {_describe_type(value)}"
    return str(spec["type"])


def _count_messages(count: int) -> str:
    return f"{count} messages"


def _format_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
