"""Keys as files: how they are made, and what is said of each thing that can be wrong with them."""

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


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_pair_is_two_files_that_nobody_else_can_read(tmp_path) -> None:
    before = os.umask(0)
    try:
        pair = create_pair(tmp_path / "a" / "keys", "alice")
    finally:
        os.umask(before)
    where = tmp_path / "a" / "keys"
    assert mode(where) == 0o700
    assert {file.name: mode(file) for file in where.iterdir()} == {
        "alice.key": 0o600,
        "alice.pub": 0o600,
    }
    assert read_pair(where / "alice.key") == pair
    assert (
        parse_public_key(where / "alice.pub")
        == parse_public_key(str(where / "alice.pub"))
        == pair.public
    )
    assert parse_public_key(pair.public) == pair.public
    assert pair.secret not in repr(pair)
    assert pair.secret not in (where / "alice.pub").read_text()


@pytest.mark.parametrize("ending", ["key", "pub"])
def test_a_key_never_takes_the_place_of_another(tmp_path, ending) -> None:
    create_pair(tmp_path / "keys", "alice")
    kept = tmp_path / "keys" / f"alice.{ending}"
    other = tmp_path / "keys" / ("alice.pub" if ending == "key" else "alice.key")
    other.unlink()
    content = kept.read_bytes()
    with pytest.raises(KeyFileError, match=f"alice.{ending} is there already"):
        create_pair(tmp_path / "keys", "alice")
    assert kept.read_bytes() == content
    assert not other.exists()


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a b", "x" * 65, "ü", "a\n"])
def test_what_can_be_no_name_is_refused(tmp_path, folder, name) -> None:
    for call in (
        lambda: create_pair(tmp_path, name),
        lambda: folder.allow("x", name),
        lambda: folder.revoke(name),
    ):
        with pytest.raises(KeyFileError, match="can't be a name"):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["keys"]


def test_who_is_allowed_is_in_the_folder_until_revoked(tmp_path, folder) -> None:
    alice, bob = (create_pair(tmp_path, name).public for name in ("alice", "bob"))
    assert folder.allowed().keys == {}
    seen = [folder.fingerprint()]
    folder.allow(alice, "alice")
    folder.allow(bob, "bob")
    seen.append(folder.fingerprint())
    assert folder.allowed().keys == {"alice": alice, "bob": bob}
    assert mode(folder.path / "allowed") == 0o700
    assert mode(folder.path / "allowed" / "bob.pub") == 0o600
    folder.revoke("alice")
    seen.append(folder.fingerprint())
    assert folder.allowed().keys == {"bob": bob}
    assert len(set(seen)) == 3
    assert folder.fingerprint() == seen[-1]
    assert not [f for f in (folder.path / "allowed").iterdir() if f.name != "bob.pub"]


def test_what_may_have_become_readable_shows(tmp_path, folder) -> None:
    folder.allow(create_pair(tmp_path, "bob").public, "bob")
    allowed = folder.path / "allowed"
    seen = [folder.fingerprint()]
    for path, its_mode in (
        (allowed / "bob.pub", 0o000),
        (allowed / "bob.pub", 0o600),
        (allowed, 0o770),
        (allowed, 0o700),
    ):
        path.chmod(its_mode)
        seen.append(folder.fingerprint())
        time.sleep(0.02)  # the file system's clock ticks
    assert len(set(seen)) == len(seen)
    assert folder.fingerprint() == seen[-1]


def test_a_name_or_a_key_is_allowed_once_only(tmp_path, folder) -> None:
    alice = create_pair(tmp_path, "alice").public
    folder.allow(alice, "alice")
    with pytest.raises(KeyFileError, match="alice is allowed already: revoke it first"):
        folder.allow(create_pair(tmp_path, "other").public, "alice")
    with pytest.raises(KeyFileError, match="that key is allowed already, as alice"):
        folder.allow(alice, "alias")
    with pytest.raises(KeyFileError, match="bob isn't allowed; allowed is: alice"):
        folder.revoke("bob")


def test_a_damaged_file_among_the_allowed_is_a_problem_of_its_own(tmp_path, folder) -> None:
    alice = create_pair(tmp_path, "alice").public
    folder.allow(alice, "alice")
    (folder.path / "allowed" / "bob.pub").write_text("nonsense")
    (folder.path / "allowed" / "README").write_text("not looked at")
    allowed = folder.allowed()
    assert allowed.keys == {"alice": alice}
    assert len(allowed.problems) == 1
    assert "bob.pub: isn't a key of streamseg" in allowed.problems[0]


def test_a_folder_without_a_services_pair_says_how_to_make_it(tmp_path) -> None:
    with pytest.raises(KeyFileError, match=f"streamseg keys new server --dir {tmp_path}"):
        KeyFolder(tmp_path)


@pytest.mark.parametrize("others", [0o710, 0o701, 0o750, 0o755])
def test_a_folder_that_others_can_only_read_is_fine(folder, others) -> None:
    folder.path.chmod(others)
    KeyFolder(folder.path)


@pytest.mark.parametrize("others", [0o720, 0o702, 0o777])
def test_a_folder_that_others_can_write_to_is_refused(tmp_path, folder, others) -> None:
    folder.allow(create_pair(tmp_path, "alice").public, "alice")
    (folder.path / "allowed").chmod(others)
    with pytest.raises(KeyFileError, match=r"allowed: others can write to it .*: chmod 700"):
        folder.allowed()
    folder.path.chmod(others)
    with pytest.raises(KeyFileError, match="others can write to it"):
        KeyFolder(folder.path)


@pytest.mark.parametrize("others", [0o640, 0o604, 0o620, 0o644, 0o677])
def test_a_secret_that_others_can_read_is_refused(tmp_path, others) -> None:
    create_pair(tmp_path, "alice")
    (tmp_path / "alice.key").chmod(others)
    with pytest.raises(KeyFileError, match=r"others can read this secret.*chmod 600"):
        read_pair(tmp_path / "alice.key")


def test_the_wrong_file_of_a_pair_is_said_to_be_so(tmp_path) -> None:
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
    ("content", "why"),
    [
        ("", "isn't a key of streamseg"),
        ("-----BEGIN PRIVATE KEY-----\n", "isn't a key of streamseg"),
        ("streamseg-secret-key\n", "the key in it is damaged"),
        ("streamseg-secret-key " + "a" * 39, "the key in it is damaged"),
        ("streamseg-secret-key " + "a" * 41, "the key in it is damaged"),
        ("streamseg-secret-key " + "a" * 40 + "\nmore\n", "the key in it is damaged"),
        ("streamseg-secret-key " + "#" * 40, "the key in it is damaged"),
        ("streamseg-secret-key " + "é" * 20, "the key in it is damaged"),
        ("streamseg-secret-key " + "a" * 5000, "the key in it is damaged"),
        (os.urandom(4000), "isn't a key of streamseg"),
    ],
)
def test_what_is_no_key_is_said_without_its_content(tmp_path, content, why) -> None:
    path = tmp_path / "alice.key"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match=f"alice.key: {why}") as caught:
        read_pair(path)
    assert "\n" not in str(caught.value)
    assert "aaaaa" not in str(caught.value)


def test_what_is_no_file_is_said(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path, why in [
        (tmp_path / "none.key", "there is no such file"),
        (tmp_path, "isn't a file"),
        (tmp_path / "pipe", "isn't a file"),
        (tmp_path / ("x" * 300), "File name too long"),
    ]:
        with pytest.raises(KeyFileError, match=why):
            read_pair(path)


@pytest.mark.parametrize("text", ["", "x", "a" * 41, "a\0b", "x" * 5000, "#" * 40, "é" * 40])
def test_what_is_neither_a_key_nor_a_file_is_said(text) -> None:
    with pytest.raises(KeyFileError):
        parse_public_key(text)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(max_size=60) | st.text("abc019.-:+=^!/*?&<>()[]{}@%$#", min_size=40, max_size=40)
)
def test_any_text_is_a_key_or_is_refused(tmp_path, text) -> None:
    path = tmp_path / "any.pub"
    path.write_text(f"streamseg-public-key {text}", encoding="utf-8", errors="replace")
    try:
        assert parse_public_key(path) == text.rstrip("\r\n")
    except KeyFileError as error:
        assert "\n" not in str(error)  # noqa: PT017 - both ends are right


def test_no_public_key_looks_like_an_option(monkeypatch) -> None:
    made = iter([(b"-x", b"s"), (b"ok", b"s")])
    monkeypatch.setattr(curve.zmq, "curve_keypair", lambda: next(made))
    assert curve._generate() == ("ok", "s")


# The command line


def run(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_from_new_to_revoked_on_the_command_line(capsys, tmp_path) -> None:
    served = tmp_path / "keys"
    assert run(capsys, "keys", "new", "server", "--dir", served)[0] == 0
    code, public, _ = run(capsys, "keys", "new", "alice", "--dir", tmp_path)
    assert (code, public.strip()) == (0, parse_public_key(tmp_path / "alice.pub"))
    assert run(capsys, "keys", "allow", served, tmp_path / "alice.pub") == (0, "", "")
    assert run(capsys, "keys", "list", served) == (0, f"alice {public}", "")
    assert run(capsys, "keys", "revoke", served, "alice") == (0, "", "")
    assert run(capsys, "keys", "list", served) == (0, "", "")
    assert run(capsys, "keys", "allow", served, public.strip(), "alias") == (0, "", "")
    assert run(capsys, "keys", "list", served) == (0, f"alias {public}", "")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["allow", "keys", "none.pub"], "there is no such file, and it isn't a key"),
        (["allow", "keys", "a" * 40], "needs a name"),
        (["allow", "keys", "keys/server.key", "x"], "this is a secret key"),
        (["revoke", "keys", "bob"], "bob isn't allowed"),
        (["list", "nowhere"], "there is no server.key"),
        (["new", "server", "--dir", "keys"], "is there already"),
        (["new", "x", "--dir", "/proc/nowhere"], "/proc/nowhere"),
    ],
)
def test_what_goes_wrong_is_one_line(capsys, tmp_path, monkeypatch, arguments, why) -> None:
    monkeypatch.chdir(tmp_path)
    create_pair(tmp_path / "keys", "server")
    code, out, err = run(capsys, "keys", *arguments)
    assert (code, out) == (1, "")
    assert why in err
    assert err.count("\n") == 1


def test_a_damaged_key_is_listed_as_a_problem(capsys, folder) -> None:
    (folder.path / "allowed").mkdir(0o700)
    (folder.path / "allowed" / "bob.pub").write_text("x")
    code, out, err = run(capsys, "keys", "list", folder.path)
    assert (code, out) == (1, "")
    assert "bob.pub" in err
