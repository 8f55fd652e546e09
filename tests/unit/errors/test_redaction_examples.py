"""Redaction of secrets in URLs: examples of texts before and after."""

import pytest

from streamseg.errors import redact


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("rtsp://u:p@h/x", "rtsp://u:***@h/x"),
        (
            "can't open 'rtsp://u:p@ss@h:554/x': timed out",
            "can't open 'rtsp://u:***@h:554/x': timed out",
        ),
        ("rtsp://admin:pa/ss@h/x", "rtsp://admin:***@h/x"),
        ("rtsp://admin:it's@h/x", "rtsp://admin:***@h/x"),
        ('rtsp://admin:say"@h/x', "rtsp://admin:***@h/x"),
        ("rtsp://me@example.com:p@h/live", "rtsp://me@example.com:***@h/live"),
        ("rtsp://me@h:554/live", "rtsp://me@h:554/live"),
        ("rtsp://h:554/user=admin_password=p_channel=1", "rtsp://h:554/user=admin_password=***"),
        ("http://h/v.cgi?loginuse=me&loginpas=p'q", "http://h/v.cgi?loginuse=***&loginpas=***"),
        ("http://h/a?pwd=x: no '/a?pwd=x y'", "http://h/a?pwd=***: no '/a?pwd=*** y'"),
        ("/data/session_key=5/passes=no.mp4", "/data/session_key=5/passes=***"),
        ("rtsp://:p@h/x", "rtsp://:***@h/x"),
        ("http://h/x?user=me&password=p&api=k", "http://h/x?user=***&password=***&api=***"),
        ("http://h/x?p=q#frag: 404 not found", "http://h/x?p=***: 404 not found"),
        ("rtsp://h:554/cam@1", "rtsp://h:***@1"),
        ("rtsp://h:80/pass@g/x", "rtsp://h:***@g/x"),
        ("rtsp://admin:a b@h/x: no answer", "rtsp://admin:***@h/x: no answer"),
        ("rtsp://admin%3Ap@h/x", "rtsp://admin:***@h/x"),
        ("admin:p@h/x", "admin:***@h/x"),
        ("rtsp//admin:p@h/x", "rtsp//admin:***@h/x"),
        ("mail me@example.com: masks at tcp://127.0.0.1:5555", None),
        ("rtsp://h/x?p=***: no answer", None),
        ("/data/12:30@noon.mp4", "/data/12:30@noon.mp4"),
        ("test:?size=8x8&seed=1", "test:?size=8x8&seed=1"),
    ],
)
def test_secrets_and_nothing_else_are_redacted(text, redacted):
    assert redact(text) == (text if redacted is None else redacted)
    assert redact(redact(text)) == redact(text)
