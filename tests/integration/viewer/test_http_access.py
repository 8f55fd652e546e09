"""HTTP server of the viewer: static files, checks of Host and Origin, and invalid arguments."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.viewers import authority, open_client, port_of, viewer
from websockets.exceptions import InvalidStatus

from streamseg.errors import BindError, UsageError
from streamseg.service.http_access import HostNames
from streamseg.viewer import Viewer
from streamseg.viewer.server import STATIC_FOLDER

NO_SERVICE = "tcp://127.0.0.1:9"
CONTENT_TYPES = {".html": "text/html", ".css": "text/css", ".js": "javascript", ".svg": "image/svg"}


def get(running, path="/", **headers):
    return httpx.get(running.url.rstrip("/") + path, headers=headers)


@pytest.mark.parametrize("file", sorted(path.name for path in STATIC_FOLDER.iterdir()))
def test_static_file_has_its_type_and_security_headers(idle_viewer, file) -> None:
    answer = get(idle_viewer, f"/{file}")
    assert answer.status_code == 200
    assert CONTENT_TYPES[Path(file).suffix] in answer.headers["content-type"]
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-cache"


def test_root_is_the_page(idle_viewer) -> None:
    assert get(idle_viewer).text == (STATIC_FOLDER / "index.html").read_text()


def test_static_files_have_no_inline_code_and_no_external_resources() -> None:
    html = (STATIC_FOLDER / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", html)
    for file in STATIC_FOLDER.iterdir():
        text = re.sub(r"http://www\.w3\.org/2000/svg", "", file.read_text())
        assert not re.search(r"https?://|@import|url\(", text), file


def test_scripts_do_not_convert_text_to_html() -> None:
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc"
    )
    for file in STATIC_FOLDER.glob("*.js"):
        assert not re.search(forbidden, file.read_text()), file


@pytest.mark.parametrize("path", ["/nothing", "/../server.py", "/%2e%2e/server.py", "/static/"])
def test_other_paths_do_not_exist(idle_viewer, path) -> None:
    assert get(idle_viewer, path).status_code == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_other_methods_are_refused(idle_viewer, method) -> None:
    assert httpx.request(method, idle_viewer.url).status_code == 405


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{port}",
        "127.0.0.1",
        "127.0.0.1:1",
        "localhost",
        "127.0.0.1:{port}.evil.example",
        "localhost:{port}@evil.example",
        "0.0.0.0:{port}",
        "",
    ],
)
def test_unknown_host_is_refused(idle_viewer, host) -> None:
    answer = get(idle_viewer, host=host.format(port=port_of(idle_viewer)))
    assert answer.status_code == 403
    assert "--allow-host" in answer.text
    assert "content-security-policy" in answer.headers


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1:1", "evil.example:{port}"])
def test_websocket_with_unknown_host_is_refused(idle_viewer, host) -> None:
    host = host.format(port=port_of(idle_viewer))
    with pytest.raises(InvalidStatus, match="403"), open_client(idle_viewer, host=host):
        pass


@pytest.mark.parametrize("host", ["localhost:{port}", "LOCALHOST:{port}", "[::1]:{port}"])
def test_loopback_names_are_accepted(idle_viewer, host) -> None:
    assert get(idle_viewer, host=host.format(port=port_of(idle_viewer))).status_code == 200


def test_request_with_two_hosts_is_refused(idle_viewer) -> None:
    host = authority(idle_viewer).encode()
    request = b"GET / HTTP/1.1\r\nHost: " + host + b"\r\nHost: evil.example\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port_of(idle_viewer)), timeout=5) as client:
        client.sendall(request)
        assert re.match(rb"HTTP/1.1 40[03] ", client.recv(1000))


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://localhost:1", "file://", "https://evil:{port}"],
)
def test_other_origins_are_refused(idle_viewer, origin) -> None:
    origin = origin.format(port=port_of(idle_viewer))
    assert get(idle_viewer, origin=origin).status_code == 403
    with pytest.raises(InvalidStatus, match="403"), open_client(idle_viewer, origin=origin):
        pass


def test_websocket_without_origin_is_refused(idle_viewer) -> None:
    with pytest.raises(InvalidStatus, match="403"), open_client(idle_viewer, origin=None):
        pass


def test_own_origin_is_accepted(idle_viewer) -> None:
    assert get(idle_viewer, origin=idle_viewer.url.rstrip("/")).status_code == 200
    with open_client(idle_viewer) as client:
        assert client.wait_for_dashboard()["state"] == "connecting"


def test_allowed_hosts_are_accepted() -> None:
    with viewer(NO_SERVICE, allow_hosts=["Cams.example.org"]) as running:
        assert get(running, host="cams.example.org").status_code == 200
        assert get(running, host="other.example.org").status_code == 403
        with open_client(
            running, host="cams.example.org", origin="https://cams.example.org"
        ) as client:
            assert client.wait_for_dashboard()
        with (
            pytest.raises(InvalidStatus, match="403"),
            open_client(running, host="cams.example.org", origin="https://other.example.org"),
        ):
            pass


@given(st.text("[0127.:8]localhstmexpr-LO*@/ ", max_size=40))
def test_only_exact_host_names_are_known(host) -> None:
    names = HostNames.of("127.0.0.1", 8080, ["cams.example.org:443"], "--allow-host")
    known = {"127.0.0.1:8080", "localhost:8080", "[::1]:8080", "cams.example.org:443"}
    assert (host.lower() in names.authorities) == (host.lower() in known)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "cams.example.org"])
def test_other_addresses_than_loopback_need_insecure(host) -> None:
    with pytest.raises(UsageError, match="--insecure"):
        Viewer(NO_SERVICE, host=host, port=0)


def test_all_interfaces_can_be_bound_with_insecure() -> None:
    with viewer(NO_SERVICE, host="0.0.0.0", insecure=True) as running:
        assert httpx.get(f"http://127.0.0.1:{port_of(running)}/").status_code == 200


def test_ipv6_loopback_can_be_bound() -> None:
    with viewer(NO_SERVICE, host="::1") as running:
        assert running.url.startswith("http://[::1]:")
        assert httpx.get(running.url).status_code == 200


def test_port_in_use_is_reported_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other_server:
        port = other_server.getsockname()[1]
        with pytest.raises(BindError, match=f"127.0.0.1:{port} can't be bound: ") as caught:
            Viewer(NO_SERVICE, port=port)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"address": "udp://x:1"}, "isn't an address"),
        ({"sources": ["a/b"]}, "'a/b'"),
        ({"allow_hosts": ["http://x"]}, "--allow-host"),
        ({"allow_hosts": ["*"]}, "--allow-host"),
        ({"port": 99999}, "--port 99999: must be from 0 to 65535"),
    ],
)
def test_invalid_arguments_are_refused_by_the_constructor(options, message) -> None:
    with pytest.raises(UsageError, match=message):
        Viewer(**{"address": NO_SERVICE, "port": 0} | options)


def test_viewer_imports_no_packages_of_the_service() -> None:
    packages = ["torch", "torchvision", "av", "cv2", "scipy", "yaml", "prometheus_client"]
    code = f"import sys, streamseg.viewer; print([m for m in {packages} if m in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
