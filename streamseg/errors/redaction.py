"""Redaction of secrets in text: passwords, tokens and keys become ``***``.

The text may be a log line of a library or a malformed URL, so the end of a secret is not always
known. Everything that may belong to a secret is hidden, possibly with the text that follows it.
"""

from __future__ import annotations

import re

HIDDEN = "***"

_SCHEME = re.compile(r"(?<![\w+.-])[A-Za-z][\w+.-]{0,30}:/+")
_USER_END = re.compile(r"[\s:%/?#]")
_COLON = re.compile(r":|%3A", re.IGNORECASE)
_AT = re.compile(r"@|%40")
_SEPARATORS = re.compile(r"([?#&;])")
_PARAMETER = re.compile(r"(?P<name>[\w.\[\]-]+)=(?P<value>.*)", re.DOTALL)
_CLOSING = ":,;.)]}'\""
"""Punctuation that may follow a URL in a sentence."""
_SENSITIVE = r"pass|pwd|psw|token|secret|key|auth|sig|code|cred|session|jwt"
_NAMED_SECRET = re.compile(
    rf"(?P<before>[?&][^=&\s]{{0,60}}(?:{_SENSITIVE})[^=&\s]{{0,60}}(?:=|%3D)"
    r"|[?&](?:p|pw|pin|sid)(?:=|%3D)"
    r"|[?&;/_]\w{0,40}(?:pass\w{0,40}|pas|pwd|psw)(?:=|%3D)"
    r"|(?<![\w.])(?:password|passwd|passphrase|pwd|secret|token)\s?=\s?"
    r"|[\"']\w{0,40}(?:password|passwd|secret|token)[\"']\s?:\s?[\"'])"
    r"(?P<value>[^&\s]+)",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """Return ``text`` with the secrets of the URLs in it replaced by ``***``.

    Secrets are passwords before an ``@``, with or without a scheme, the values in the query and the
    fragment of a URL, and values with a name such as ``token=`` or ``api_key=``. Other text is
    unchanged.
    """
    return "".join(_redact_line(line) for line in text.splitlines(keepends=True))


def redact_address(address: str) -> str:
    """Redact a complete address, including secrets with white space.

    Unlike in ``redact``, the end of the address is known.
    """
    joined = re.sub(r"\s", "%20", address)
    redacted = redact(joined)
    return address if redacted == joined else redacted


def escape_unprintable(text: str) -> str:
    """Escape control characters and line breaks in ``text``."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _redact_line(line: str) -> str:
    line = _redact_login_of_url(line)
    tokens = re.split(r"(\s+)", line)
    line = "".join(_redact_query(_redact_login_of_token(token)) for token in tokens)
    return _NAMED_SECRET.sub(lambda m: m["before"] + _hide(m["value"]), line)


def _redact_login_of_url(line: str) -> str:
    """Hide the text between the user name of the first URL with a password and the last ``@``.

    White space does not end a password.
    """
    end = max((match.start() for match in _AT.finditer(line)), default=-1)
    for scheme in _SCHEME.finditer(line, 0, max(end, 0)):
        user_end = _USER_END.search(line, scheme.end(), end)
        if user_end and _COLON.search(line, user_end.start(), end):
            return f"{line[: user_end.start()]}:{HIDDEN}{line[end:]}"
    return line


def _redact_login_of_token(token: str) -> str:
    """Hide the password of ``user:password@host`` if the scheme is missing or malformed.

    A colon in a path (``/recordings/12:30@noon.mp4``) does not start a password. Tokens with a
    scheme are handled by ``_redact_login_of_url``.
    """
    end = max((match.start() for match in _AT.finditer(token)), default=-1)
    colon = _COLON.search(token, 0, max(end, 0))
    if colon is None:
        return token
    before = token[: colon.start()]
    if _SCHEME.search(token, 0, end) or ("/" in before and "//" not in before):
        return token
    return f"{before}:{HIDDEN}{token[end:]}"


def _redact_query(token: str) -> str:
    """Hide the values in the query and the fragment of a URL."""
    scheme = _SCHEME.search(token)
    start = _SEPARATORS.search(token, scheme.end()) if scheme else None
    if start is None:
        return token
    parts = _SEPARATORS.split(token[start.start() :])
    return token[: start.start()] + "".join(_redact_parameter(part) for part in parts)


def _redact_parameter(part: str) -> str:
    parameter = _PARAMETER.fullmatch(part)
    if parameter and parameter["value"].strip("="):
        return f"{parameter['name']}={_hide(parameter['value'])}"
    return part if not part or _SEPARATORS.fullmatch(part) else _hide(part)


def _hide(value: str) -> str:
    """Replace ``value`` by ``***``, but keep its trailing punctuation."""
    kept = value.rstrip(_CLOSING)
    return HIDDEN + value[len(kept) :] if kept else HIDDEN
