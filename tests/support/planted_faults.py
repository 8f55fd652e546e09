"""Fuzz targets with one known fault each; as a program, prints the findings as JSON."""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from fuzz import fuzz
from fuzzing.mutation import mutate_bytes
from fuzzing.trial import Seed, Target

from streamseg.errors import StreamsegError


def read_well(_folder, _name, _data):
    pass


def refuse(_folder, _name, _data):
    raise StreamsegError("a.mp4: is no video")


def abort(_folder, _name, _data):
    os.abort()


def raise_error(_folder, _name, _data):
    raise KeyError("inside")


def raise_error_in_thread(_folder, _name, _data):
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()


def raise_in_destructor(_folder, _name, _data):
    class Raises:
        def __del__(self):
            raise ValueError("unraisable")

    Raises()
    gc.collect()


def refuse_without_reason(_folder, _name, _data):
    raise StreamsegError(" ")


def wait_without_end(_folder, _name, _data):
    time.sleep(600)


def compute_without_end(_folder, _name, _data):
    while True:
        pass


def take_memory(_folder, _name, _data):
    bytearray(b"x") * (80 << 20)


def connect_elsewhere(_folder, _name, data):
    host, port = data.decode().rsplit(":", 1)
    socket.create_connection((host, int(port))).close()


def send_elsewhere(_folder, _name, data):
    host, port = data.decode().rsplit(":", 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", (host, int(port)))


def read_elsewhere(_folder, _name, data):
    Path(os.fsdecode(data)).read_bytes()


INPUTS = {
    connect_elsewhere: b"@CANARY@",
    send_elsewhere: b"@CANARY@",
    read_elsewhere: b"@CANARY_FILE@",
}
SECONDS = {wait_without_end: 0.25, compute_without_end: 1}
FAULTS = (
    *(read_well, refuse, abort, raise_error, raise_error_in_thread, raise_in_destructor),
    *(refuse_without_reason, wait_without_end, compute_without_end, take_memory),
    *(connect_elsewhere, send_elsewhere, read_elsewhere),
)


def main() -> None:
    inputs = []
    for run in FAULTS:
        seed = Seed("a.bin", INPUTS.get(run, b"x"))
        seconds = SECONDS.get(run, 15)
        inputs.append(
            (Target(run.__name__, lambda: (), mutate_bytes, run, 50, seconds), seed),
        )
    trials, findings = fuzz(inputs, 60, 4, Path(sys.argv[1]))
    assert trials.total() == len(FAULTS)
    Path(sys.argv[2]).write_text(json.dumps({found.target: found.what for found in findings}))


if __name__ == "__main__":
    main()
