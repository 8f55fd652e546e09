"""Redaction: no printed text contains a password or token, whichever mistake is reported."""

from __future__ import annotations

import logging
import re
import time
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from support.commands import Run

from streamseg.cli import logs
from streamseg.cli.app import build_config
from streamseg.config import SourceConfig, assign_source_names, load, override, training, validate
from streamseg.errors import ConfigError, StreamsegError
from streamseg.errors.redaction import redact, redact_address
from streamseg.service.http_client import HttpApiClient
from streamseg.sources import open_source

SECRET = "not-to-be-seen"
LOGINS = (
    "rtsp://admin:{}@10.0.0.7/live",
    "rtsp://admin:{}@10.0.0.7:554/live?channel=1",
    "rtsp://admin:80/{}@h/x",
    "rtsp://:{}@10.0.0.7",
    "RTSPS://admin:{}@h",
    "rtsp:/admin:{}@h/x",
    "rtsp:///admin:{}@h/x",
    "rtsp://ad/min:{}@h/x",
    "rtsp://admin%3A{}@h/x",
    "rtsp//admin:{}@h/x",
    "rtsp;//admin:{}@h/x",
    "http://admin:{}@h:abc/x",
    "http://h:99999/x?y=http://a:{}@b",
    "udp://admin:{}@239.0.0.1:5000",
    "mqtt://u:{}@h",
    "ftp://u:{}@h/a.mp4",
    "\u00a0rtsp://admin:{}@h/x",
    "admin:{}@h/x",
)
PARAMETERS = (
    "rtsp://h/x?p={}",
    "rtsp://h/x?user=a&pw={}&channel=1",
    "https://h/x?access_code={}",
    "http://h/x.m3u8?session={}#t=1",
    "http://h/x?{}",
    "rtsp://h/x?password%3D{}",
    "rtsp://h/x#{}",
)
MISTAKES = (
    "sources:\n  - url: {}\n",
    "sources:\n  - url: {}: x\n",
    'sources:\n  - url: "{}\n    name: gate\n',
    "sources:\n  - url: '{}'\n    transport: 3\n",
    "sources: [{{url: {}, user: admin}}\n",
    "sources:\n  - {}\n",
    "sources:\n  - {}: 1\n",
    "sources:\n  - {{url: x, name: '{}'}}\n",
    "sources:\n  - {{url: x, transport: '{}'}}\n",
    "sources:\n  - {{url: x, stall_after: '{}'}}\n",
    "sources:\n  - {{url: x, input: {{'{}': '1'}}}}\n",
    "sources:\n  - {{url: x, user: a, password_env: {}}}\n",
    "sources:\n  - {{url: x, user: a, password_file: {}}}\n",
    "{}: 1\n",
    "? {}\n",
    "- {}\n",
    "&{} sources: *{}\n",
    "sources: !{} x\n",
    "sources:\n\t- {}\n",
    "model: '{}'\n",
)
secrets = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0x17F, exclude_categories=("Cc", "Cf", "Zs")),
    min_size=8,
    max_size=16,
)
"""Secrets without white space, which ends a URL in a text; spaces have a test of their own."""
encoders = st.sampled_from([str, lambda secret: quote(secret, safe="")])


def encodings(secret: str) -> tuple[str, ...]:
    """Return the forms in which a secret may be printed."""
    return secret, quote(secret, safe=""), quote(secret), repr(secret)[1:-1]


def error_message(action: object, *arguments: object) -> str:
    """Return the message of the error that a call raises, before the logging redacts it."""
    try:
        action(*arguments)  # type: ignore[operator]
    except (StreamsegError, ValueError) as error:
        return str(error)
    return ""


@settings(max_examples=150)
@given(
    secrets,
    encoders,
    st.sampled_from([*LOGINS, *PARAMETERS]),
    st.sampled_from(["", "it's '", "x: "]),
)
def test_addresses_are_printed_without_the_secret(secret, encode, template, prefix) -> None:
    url = template.format(encode(secret))
    texts = [
        redact_address(url),
        redact(f"{prefix}{url}: no answer"),
        redact(redact_address(url)),
        assign_source_names([("", url)])[0],
        logs.TextFormatter().format(logging.makeLogRecord({"msg": "%s", "args": (url,)})),
        logs.JsonFormatter().format(logging.makeLogRecord({"msg": "x", "url": url})),
        error_message(lambda: open_source(SourceConfig(url=url, stream=3))),
    ]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", secret).strip("-.")
    assume(not any(form in template for form in (*encodings(secret), name)))
    for text in texts:
        assert not any(form in text for form in encodings(secret)), text
    assert len(name) < 6 or name not in texts[3]


@settings(max_examples=50)
@given(st.lists(secrets, min_size=2, max_size=3), st.sampled_from(LOGINS[:4]))
def test_passwords_with_spaces_are_hidden_completely(words, template) -> None:
    url = template.format(" ".join(words))
    for text in (redact_address(url), redact(f"{url}: no answer")):
        assert not any(word in text for word in words if word not in template), text


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    secrets,
    encoders,
    st.sampled_from([*LOGINS, *PARAMETERS, "A1!{}"]),
    st.sampled_from(MISTAKES),
)
def test_errors_in_a_file_are_reported_without_the_secret(
    tmp_path, secret, encode, template, mistake
) -> None:
    value = template.format(encode(secret))
    content = mistake.replace("{}", value).replace("{{", "{").replace("}}", "}")
    file = tmp_path / "c.yaml"
    file.write_text(content, encoding="utf-8")
    texts = [
        error_message(lambda: validate(load(file), str(file))),
        error_message(training.load_training_config, file, []),
        error_message(training.load_evaluation_config, file, []),
    ]
    for text in texts:
        assert not any(form in text for form in encodings(secret)), text
        assert "\n" not in text


@settings(max_examples=100)
@given(
    secrets,
    encoders,
    st.sampled_from([*LOGINS, *PARAMETERS, "A1!{}"]),
    st.sampled_from(
        ["sources.5.url=", "sources.0.url=[", "sources.0.url:", "", "sources.0.transport="]
    ),
)
def test_errors_in_an_override_are_reported_without_the_secret(
    secret, encode, template, key
) -> None:
    raw = {"sources": [{"url": "x"}]}
    text = error_message(override, raw, [key + template.format(encode(secret))])
    text += error_message(validate, raw, "the command")
    assert not any(form in text for form in encodings(secret)), text


@pytest.mark.parametrize(
    "url",
    [
        "rtsp://admin:{}@10.0.0.7",
        "rtsp://h:554/user=admin&password={}&channel=1.sdp",
        "rtsp://h/user=admin_password={}_channel=1.sdp",
        "http://h?token={}",
    ],
)
def test_derived_source_name_has_no_secret(url: str) -> None:
    assert SECRET not in assign_source_names([("", url.format(SECRET))])[0]


def test_location_of_a_secret_is_not_quoted(tmp_path: Path) -> None:
    """The secret itself may have been entered there by mistake."""
    for location in ({"password_env": SECRET}, {"password_file": SECRET}):
        config = SourceConfig(url="rtsp://h/x", user="me", **location)
        text = error_message(open_source, config)
        assert text.startswith("rtsp://h/x: password: its ")
        assert SECRET not in text


@pytest.mark.parametrize(
    "address",
    ["http://u:{}@h:1", "http://h:{}", "h:{}@x", "http://h/?token={}", "http://[{}", "http://{} x"],
)
def test_invalid_address_of_the_http_api_is_not_quoted(address: str) -> None:
    text = error_message(HttpApiClient(address.format(SECRET)).sources)
    assert "write http://HOST:PORT" in text
    assert SECRET not in text


@pytest.mark.parametrize(
    "arguments_with_secret",
    [
        ("serve", "--source", "rtsp://a:{}@h:99999/x"),
        ("serve", "rtsp://a:{}@h/x"),
        ("serve", "--sorce=rtsp://a:{}@h/x"),
        ("serve", "--source", "x", "more", "rtsp://a:{}@h/x"),
        ("serve", "--wait-subscribers", "rtsp://a:{}@h/x"),
        ("serve", "--bind", "tcp://a:{}@h"),
        ("process", "rtsp://a:{}@h/x", "--out", "out"),
        ("process", "admin:{}@h/x", "--out", "out", "--debug"),
        ("watch", "tcp://a:{}@h:1"),
        ("ctl", "list", "--at", "http://a:{}@h"),
        ("rtsp://a:{}@h/x",),
    ],
)
@pytest.mark.parametrize("style", ["text", "json"])
def test_invalid_command_is_reported_without_the_secret(
    streamseg: Run, arguments_with_secret, style
) -> None:
    arguments = [argument.format(SECRET) for argument in arguments_with_secret]
    ended = streamseg("--log", style, *arguments)
    assert ended.returncode in (1, 2)
    assert ended.stderr
    assert SECRET not in ended.stdout + ended.stderr


def test_traceback_has_no_secret(streamseg: Run, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise TypeError(f"rtsp://admin:{SECRET}@h/x?token={SECRET}")

    monkeypatch.setattr("streamseg.config.load", fail)
    ended = streamseg("serve", "--source", "x")
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr
    assert "streamseg: unexpected TypeError: rtsp://admin:***@h/x?token=***" in ended.stderr
    assert SECRET not in ended.stderr


def test_section_of_a_wrong_type_is_refused_although_options_set_its_values() -> None:
    for line in ("model: nanomask", "sources: x"):
        raw = Path("c.yaml")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("streamseg.config.load", lambda _, line=line: dict([line.split(": ")]))
            with pytest.raises(ConfigError, match=f"{line.split(':')[0]}: Expected"):
                build_config(raw, [], [{"url": "y"}], "nanomask", None)


@pytest.mark.parametrize("piece", ["a", "a://", "a:/x?", "_", "@:", "a://b:", "?key", "%3A", "a@ "])
def test_redaction_takes_linear_time(piece: str) -> None:
    started_at = time.process_time()
    redact(piece * (64 * 1024 // len(piece)) + "@")
    assert time.process_time() - started_at < 2
