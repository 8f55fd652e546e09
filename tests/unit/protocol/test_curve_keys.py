"""Tests of CURVE key files: creation, permissions, the allowed keys and their errors."""

from __future__ import annotations

import os
import stat
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamseg.cli import main
from streamseg.errors import KeyFileError
from streamseg.protocol import curve
from streamseg.protocol.curve import KeyFolder, create_pair, parse_public_key, read_pair


@pytest.fixture
def folder(tmp_path):
    create_pair(tmp_path / "keys", "server")
    return KeyFolder(tmp_path / "keys")


def file_mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_key_pair_is_two_files_with_mode_0600(tmp_path) -> None:
    before = os.umask(0)
    try:
        pair = create_pair(tmp_path / "a" / "keys", "alice")
    finally:
        os.umask(before)
    keys = tmp_path / "a" / "keys"
    assert file_mode(keys) == 0o700
    assert {file.name: file_mode(file) for file in keys.iterdir()} == {
        "alice.key": 0o600,
        "alice.pub": 0o600,
    }
    assert read_pair(keys / "alice.key") == pair
    assert (
        parse_public_key(keys / "alice.pub")
        == parse_public_key(str(keys / "alice.pub"))
        == pair.public
    )
    assert parse_public_key(pair.public) == pair.public
    assert pair.secret not in repr(pair)
    assert pair.secret not in (keys / "alice.pub").read_text()


@pytest.mark.parametrize("suffix", ["key", "pub"])
def test_a_key_file_is_never_replaced(tmp_path, suffix) -> None:
    create_pair(tmp_path / "keys", "alice")
    kept = tmp_path / "keys" / f"alice.{suffix}"
    other = tmp_path / "keys" / ("alice.pub" if suffix == "key" else "alice.key")
    other.unlink()
    content = kept.read_bytes()
    with pytest.raises(KeyFileError, match=f"alice.{suffix} exists already"):
        create_pair(tmp_path / "keys", "alice")
    assert kept.read_bytes() == content
    assert not other.exists()


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a b", "x" * 65, "ü", "a\n"])
def test_an_invalid_name_is_refused(tmp_path, folder, name) -> None:
    for call in (
        lambda: create_pair(tmp_path, name),
        lambda: folder.allow("x", name),
        lambda: folder.revoke(name),
    ):
        with pytest.raises(KeyFileError, match="invalid name"):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["keys"]


def test_allowed_keys_are_in_the_folder_until_they_are_revoked(tmp_path, folder) -> None:
    alice, bob = (create_pair(tmp_path, name).public for name in ("alice", "bob"))
    assert folder.allowed().keys == {}
    fingerprints = [folder.fingerprint()]
    folder.allow(alice, "alice")
    folder.allow(bob, "bob")
    fingerprints.append(folder.fingerprint())
    assert folder.allowed().keys == {"alice": alice, "bob": bob}
    assert file_mode(folder.path / "allowed") == 0o700
    assert file_mode(folder.path / "allowed" / "bob.pub") == 0o600
    folder.revoke("alice")
    fingerprints.append(folder.fingerprint())
    assert folder.allowed().keys == {"bob": bob}
    assert len(set(fingerprints)) == 3
    assert folder.fingerprint() == fingerprints[-1]
    assert not [f for f in (folder.path / "allowed").iterdir() if f.name != "bob.pub"]


def test_the_fingerprint_changes_with_file_modes(tmp_path, folder) -> None:
    folder.allow(create_pair(tmp_path, "bob").public, "bob")
    allowed = folder.path / "allowed"
    fingerprints = [folder.fingerprint()]
    for path, mode in (
        (allowed / "bob.pub", 0o000),
        (allowed / "bob.pub", 0o600),
        (allowed, 0o770),
        (allowed, 0o700),
    ):
        path.chmod(mode)
        fingerprints.append(folder.fingerprint())
        time.sleep(0.02)  # resolution of the file system's clock
    assert len(set(fingerprints)) == len(fingerprints)
    assert folder.fingerprint() == fingerprints[-1]


def test_a_name_or_a_key_can_be_allowed_only_once(tmp_path, folder) -> None:
    alice = create_pair(tmp_path, "alice").public
    folder.allow(alice, "alice")
    with pytest.raises(KeyFileError, match="alice is already allowed: revoke it first"):
        folder.allow(create_pair(tmp_path, "other").public, "alice")
    with pytest.raises(KeyFileError, match="this key is already allowed, as alice"):
        folder.allow(alice, "alias")
    with pytest.raises(KeyFileError, match="bob isn't allowed; allowed keys: alice"):
        folder.revoke("bob")


def test_a_damaged_allowed_key_is_a_separate_problem(tmp_path, folder) -> None:
    alice = create_pair(tmp_path, "alice").public
    folder.allow(alice, "alice")
    (folder.path / "allowed" / "bob.pub").write_text("nonsense")
    (folder.path / "allowed" / "README").write_text("ignored")
    allowed = folder.allowed()
    assert allowed.keys == {"alice": alice}
    assert len(allowed.problems) == 1
    assert "bob.pub: not a key of streamseg" in allowed.problems[0]


def test_the_error_of_a_folder_without_server_key_names_the_command(tmp_path) -> None:
    with pytest.raises(KeyFileError, match=f"streamseg keys new server --dir {tmp_path}"):
        KeyFolder(tmp_path)


@pytest.mark.parametrize("mode", [0o710, 0o701, 0o750, 0o755])
def test_a_folder_that_others_can_read_is_accepted(folder, mode) -> None:
    folder.path.chmod(mode)
    KeyFolder(folder.path)


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_a_folder_that_others_can_write_to_is_refused(tmp_path, folder, mode) -> None:
    folder.allow(create_pair(tmp_path, "alice").public, "alice")
    (folder.path / "allowed").chmod(mode)
    with pytest.raises(KeyFileError, match=r"allowed: others can write to it .*: chmod 700"):
        folder.allowed()
    folder.path.chmod(mode)
    with pytest.raises(KeyFileError, match="others can write to it"):
        KeyFolder(folder.path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o677])
def test_a_secret_that_others_can_read_is_refused(tmp_path, mode) -> None:
    create_pair(tmp_path, "alice")
    (tmp_path / "alice.key").chmod(mode)
    with pytest.raises(KeyFileError, match=r"other users can read this secret.*chmod 600"):
        read_pair(tmp_path / "alice.key")


def test_the_wrong_file_of_a_pair_is_named_in_the_error(tmp_path) -> None:
    pair = create_pair(tmp_path, "alice")
    with pytest.raises(KeyFileError, match=r"this is the public key: name the \.key file"):
        read_pair(tmp_path / "alice.pub")
    with pytest.raises(KeyFileError, match=r"this is a secret key: keep it") as caught:
        parse_public_key(tmp_path / "alice.key")
    assert pair.secret not in str(caught.value)
    with pytest.raises(KeyFileError, match=r"this is a secret key") as caught:
        parse_public_key((tmp_path / "alice.key").read_text())
    assert pair.secret not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("", "not a key of streamseg"),
        ("-----BEGIN PRIVATE KEY-----\n", "not a key of streamseg"),
        ("streamseg-secret-key\n", "the key is damaged"),
        ("streamseg-secret-key " + "a" * 39, "the key is damaged"),
        ("streamseg-secret-key " + "a" * 41, "the key is damaged"),
        ("streamseg-secret-key " + "a" * 40 + "\nmore\n", "the key is damaged"),
        ("streamseg-secret-key " + "#" * 40, "the key is damaged"),
        ("streamseg-secret-key " + "é" * 20, "the key is damaged"),
        ("streamseg-secret-key " + "a" * 5000, "the key is damaged"),
        (os.urandom(4000), "not a key of streamseg"),
    ],
)
def test_the_error_of_an_invalid_key_file_does_not_quote_it(tmp_path, content, error) -> None:
    path = tmp_path / "alice.key"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match=f"alice.key: {error}") as caught:
        read_pair(path)
    assert "\n" not in str(caught.value)
    assert "aaaaa" not in str(caught.value)


def test_a_missing_or_special_file_is_refused(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path, error in [
        (tmp_path / "none.key", "there is no such file"),
        (tmp_path, "isn't a file"),
        (tmp_path / "pipe", "isn't a file"),
        (tmp_path / ("x" * 300), "File name too long"),
    ]:
        with pytest.raises(KeyFileError, match=error):
            read_pair(path)


@pytest.mark.parametrize("text", ["", "x", "a" * 41, "a\0b", "x" * 5000, "#" * 40, "é" * 40])
def test_text_that_is_neither_key_nor_file_is_refused(text) -> None:
    with pytest.raises(KeyFileError):
        parse_public_key(text)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(max_size=60) | st.text("abc019.-:+=^!/*?&<>()[]{}@%$#", min_size=40, max_size=40)
)
def test_any_text_is_a_key_or_is_refused(tmp_path, text) -> None:
    path = tmp_path / "any.pub"
    path.write_text(f"streamseg-public-key {text}", encoding="utf-8", errors="replace")
    try:
        assert parse_public_key(path) == text.rstrip("\r\n")
    except KeyFileError as error:
        assert "\n" not in str(error)  # noqa: PT017 - both outcomes are valid


def test_no_public_key_looks_like_an_option(monkeypatch) -> None:
    pairs = iter([(b"-x", b"s"), (b"ok", b"s")])
    monkeypatch.setattr(curve.zmq, "curve_keypair", lambda: next(pairs))
    assert curve._generate() == ("ok", "s")


# Command line


def run(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_info:
        main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return int(exit_info.value.code or 0), captured.out, captured.err


def test_the_commands_create_allow_list_and_revoke_keys(capsys, tmp_path) -> None:
    keys = tmp_path / "keys"
    assert run(capsys, "keys", "new", "server", "--dir", keys)[0] == 0
    code, public, _ = run(capsys, "keys", "new", "alice", "--dir", tmp_path)
    assert (code, public.strip()) == (0, parse_public_key(tmp_path / "alice.pub"))
    assert run(capsys, "keys", "allow", keys, tmp_path / "alice.pub") == (0, "", "")
    assert run(capsys, "keys", "list", keys) == (0, f"alice {public}", "")
    assert run(capsys, "keys", "revoke", keys, "alice") == (0, "", "")
    assert run(capsys, "keys", "list", keys) == (0, "", "")
    assert run(capsys, "keys", "allow", keys, public.strip(), "alias") == (0, "", "")
    assert run(capsys, "keys", "list", keys) == (0, f"alias {public}", "")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["allow", "keys", "none.pub"], "is neither a file nor a key"),
        (["allow", "keys", "a" * 40], "needs a name"),
        (["allow", "keys", "keys/server.key", "x"], "this is a secret key"),
        (["revoke", "keys", "bob"], "bob isn't allowed"),
        (["list", "nowhere"], "there is no server.key"),
        (["new", "server", "--dir", "keys"], "exists already"),
        (["new", "x", "--dir", "/proc/nowhere"], "/proc/nowhere"),
    ],
)
def test_command_errors_are_one_line(capsys, tmp_path, monkeypatch, arguments, error) -> None:
    monkeypatch.chdir(tmp_path)
    create_pair(tmp_path / "keys", "server")
    code, out, err = run(capsys, "keys", *arguments)
    assert (code, out) == (1, "")
    assert error in err
    assert err.count("\n") == 1


def test_a_damaged_key_is_reported_by_the_list_command(capsys, folder) -> None:
    (folder.path / "allowed").mkdir(0o700)
    (folder.path / "allowed" / "bob.pub").write_text("x")
    code, out, err = run(capsys, "keys", "list", folder.path)
    assert (code, out) == (1, "")
    assert "bob.pub" in err
