"""Weights file reader: parity with torch.load, size limits and hostile files."""

import argparse
import collections
import functools
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.processes import PEAK
from torch import nn

from streamseg.errors import WeightsError
from streamseg.models.weights import files
from streamseg.models.weights.state_dicts import MAX_TENSORS

LEGACY_FORMAT = {"_use_new_zipfile_serialization": False}
FORMATS = pytest.mark.parametrize("options", [{}, LEGACY_FORMAT], ids=["zip", "old"])


def get_read_error(path):
    """Return the error message; it must be one line that starts with the path."""
    with pytest.raises(WeightsError) as caught:
        files.read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < len(str(path)) + 300
    return message


# Parity with torch.load


def create_state():
    torch.manual_seed(1)
    flat = torch.randn(100)
    kinds = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool)
    return {
        **{str(kind): (10 * torch.randn(3, 4)).to(kind) for kind in kinds},
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "transposed": torch.randn(3, 5).t(),
        "slice": flat[10:40:3],
        "other_slice": flat[60:].view(5, 8),
        "tied": flat,
        "tied_again": flat,
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "parameter": nn.Parameter(torch.randn(3)),
        "uint8": torch.randint(0, 255, (7,), dtype=torch.uint8),
    }


@FORMATS
def test_read_matches_torch_load_for_all_dtypes_and_layouts(tmp_path, options):
    torch.save(create_state(), tmp_path / "a.pt", **options)
    expected = torch.load(tmp_path / "a.pt", weights_only=True)
    state = files.read(tmp_path / "a.pt").state
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor), name


@given(st.data())
@settings(max_examples=60)
def test_read_restores_any_view_of_storage(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "view.pt"
    view = torch.arange(60.0).reshape(3, 4, 5)
    for _ in range(data.draw(st.integers(0, 4))):
        axis = data.draw(st.integers(0, view.ndim - 1))
        start, step = data.draw(st.integers(0, 2)), data.draw(st.integers(1, 3))
        view = view.transpose(0, axis)[start::step]
    torch.save({"a": view}, path, **data.draw(st.sampled_from([{}, LEGACY_FORMAT])))
    assert torch.equal(files.read(path).state["a"], view)


STATE = {"conv.weight": torch.ones(2, 3), "conv.bias": torch.zeros(2)}
OPTIMIZER = torch.optim.Adam([nn.Parameter(torch.ones(3))])
OPTIMIZER.param_groups[0]["params"][0].grad = torch.ones(3)
OPTIMIZER.step()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Linear(3, 2)


def add_prefix(prefix):
    return {prefix + name: tensor for name, tensor in STATE.items()}


CHECKPOINTS = {
    "bare": STATE,
    "ordered": collections.OrderedDict(STATE),
    "of a module": Net().state_dict(),
    "model": {"model": STATE, "epoch": 3, "loss": torch.tensor(0.5)},
    "torchvision's script": {
        "model": STATE,
        "optimizer": OPTIMIZER.state_dict(),
        "lr_scheduler": {"milestones": collections.Counter({16: 1})},
        "args": argparse.Namespace(data_path=Path("coco"), lr=0.02),
        "epoch": np.int64(3),
        "model_ema": STATE,
    },
    "state_dict": {"meta": {"CLASSES": ("a", "b"), "hook": functools.partial(print)}}
    | {"state_dict": STATE},
    "model_state_dict": {"model_state_dict": add_prefix("module."), "best": 0.3},
    "state_dict in model": {"model": {"state_dict": STATE}},
    "compiled": {"model": add_prefix("_orig_mod.")},
    "compiled, distributed": add_prefix("_orig_mod.module."),
    "distributed, compiled": add_prefix("module._orig_mod."),
    "a part compiled": {name.replace("conv.", "conv._orig_mod."): t for name, t in STATE.items()},
    "averaged": torch.optim.swa_utils.AveragedModel(Net()).state_dict(),
    "only an average": {"epoch": 3, "model_ema": add_prefix("module.")},
    "mmdetection's average": {"state_dict": {**STATE, "ema_conv_weight": torch.zeros(2, 3)}},
    "lightning": {
        "state_dict": add_prefix("model."),
        "hyper_parameters": argparse.Namespace(lr=1),
        "callbacks": {"a": {1, 2}, "b": frozenset([3])},
    },
}


@FORMATS
@pytest.mark.parametrize("checkpoint", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_read_finds_state_dict_in_checkpoint(tmp_path, checkpoint, options):
    torch.save(checkpoint, tmp_path / "a.pt", **options)
    state = files.read(tmp_path / "a.pt").state
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        "conv.weight": (2, 3),
        "conv.bias": (2,),
    }


def test_read_rejects_several_state_dicts_and_duplicate_names(tmp_path):
    torch.save({"student": STATE, "teacher": STATE}, tmp_path / "a.pt")
    assert "several state dicts ('student', 'teacher')" in get_read_error(tmp_path / "a.pt")
    torch.save({**STATE, **add_prefix("module.")}, tmp_path / "a.pt")
    assert "twice, with and without a prefix" in get_read_error(tmp_path / "a.pt")


def test_read_rejects_pickled_module_torchscript_and_npz(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "a.pt")
    message = get_read_error(tmp_path / "a.pt")
    assert "torch.nn.modules.linear.Linear" in message
    assert "state_dict()" in message
    with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
        archive.writestr("b/data.pkl", b"\x80\x02}.")
        archive.writestr("b/constants.pkl", b"\x80\x02).")
    assert "TorchScript" in get_read_error(tmp_path / "b.pt")
    np.savez(tmp_path / "c.npz", a=np.zeros(2))
    assert "torch.save didn't write" in get_read_error(tmp_path / "c.npz")


def test_read_rejects_file_with_wrong_checksum(tmp_path):
    torch.save({"a": torch.ones(1000)}, tmp_path / "a.pt")
    data = bytearray((tmp_path / "a.pt").read_bytes())
    at = data.index(struct.pack("<f", 1) * 100) + 200
    data[at + 3] = 0x3D  # still a valid float
    (tmp_path / "a.pt").write_bytes(data)
    assert "damaged" in get_read_error(tmp_path / "a.pt")


def test_read_accepts_archive_without_checksums(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert files.read(tmp_path / "a.pt").state.keys() == STATE.keys()


# Files that claim more data than they contain


def rewrite_member(source, target, name, change):
    """Copy the archive ``source`` with one member changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.infolist():
            data = old.read(member)
            changed = change(data) if member.filename.endswith(name) else data
            assert changed != data or not member.filename.endswith(name)
            new.writestr(member.filename, changed)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("data/0", lambda data: data[:4]),
        ("data.pkl", lambda data: data.replace(b"K\x04", b"J\x00\x00\x00\x10")),
        ("data.pkl", lambda data: data.replace(b"K\x04\x85", b"J\xff\xff\xff\xff\x85")),
        ("data.pkl", lambda data: data.replace(b"K\x01\x85", b"J\xff\xff\xff\xff\x85")),
        ("data.pkl", lambda data: data.replace(b"QK\x00", b"QK\x01")),
        ("data.pkl", lambda data: data.replace(b"QK\x00", b"Q\x8a\x09" + b"\xff" * 8 + b"\x00")),
        ("data.pkl", lambda data: data.replace(b"FloatStorage", b"DoubleStorage")),
        ("data.pkl", lambda data: data.replace(b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x001")),
    ],
    ids=["short data", "size", "negative size", "stride", "offset", "huge offset", "type", "key"],
)
def test_read_rejects_tensor_outside_its_storage(tmp_path, name, change):
    torch.save({"w": torch.ones(4)}, tmp_path / "a.pt")
    rewrite_member(tmp_path / "a.pt", tmp_path / "b.pt", name, change)
    get_read_error(tmp_path / "b.pt")


def pickle_text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


TUPLES = b")" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(60))
"""Nested pairs of tuples, which take 2^60 steps to hash."""
INT = b"\x8b" + struct.pack("<I", 1_000_000) + b"\x7f" * 1_000_000 + b"q\x01"

PROGRAMS = {
    "keys of tuples": b"}(" + TUPLES + b"K\x01u.",
    "one such key": b"}" + TUPLES + b"K\x01s.",
    "a set of them": b"\x8f(" + TUPLES + b"\x90.",
    "a frozen set": b"(" + TUPLES + b"\x91.",
    "an old dict": b"(" + TUPLES + b"K\x01d.",
    "an ordered dict": b"ccollections\nOrderedDict\n]" + b"(" + TUPLES + b"K\x01\x86\x85e\x85R.",
    "huge ints": b"}" + INT + b"K\x01s" + b"h\x01K\x01s" * 20_000 + b".",
    "deep lists": b"]" * 20_000 + b"a" * 19_999 + b".",
    "deep tuples": b")" + b"\x85" * 20_000 + b".",
    "a bytearray of 2 GB": b"c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
    "1 TB of bytes": b"\x96" + struct.pack("<Q", 1 << 40) + b"abc.",
    "32 GB of bytes": b"\x8e" + struct.pack("<Q", 1 << 35) + b"abc.",
    "a number of 2 MB": b"L" + b"9" * 2_000_000 + b"L\n.",
    "one text as many arrays": b"}"
    + pickle_text("a" * 1_000_000)
    + b"q\x01"
    + b"".join(
        pickle_text(str(n)) + b"c_codecs\nencode\nh\x01" + pickle_text("latin1") + b"\x86Rs"
        for n in range(1000)
    )
    + b".",
}


@pytest.fixture(scope="module")
def bombs(tmp_path_factory):
    """Return a folder of small files that claim to be large or take forever to read."""
    folder = tmp_path_factory.mktemp("bombs")
    one, row = torch.zeros(1), torch.zeros(200_000)
    contents = {
        "expanded": {"w": one.expand(1 << 34)},
        "wrapped": {"model": {"w": one.expand(1 << 34)}},
        "two sides": {"w": torch.zeros(1, 1).expand(1 << 20, 1 << 16)},
        "parameter": {"w": nn.Parameter(one.expand(1 << 33))},
        "overlapping": {"w": torch.zeros(1000).as_strided((900, 100), (1, 1))},
        "many views": {f"w{n}": row[n:] for n in range(2000)},
        "many names": {f"w{n}": row for n in range(2 * MAX_TENSORS)},
        "meta": {"w": torch.zeros(1 << 40, device="meta")},
    }
    for name, content in contents.items():
        torch.save(content, folder / f"{name}.pt")
        if name != "many names":
            torch.save(content, folder / f"old {name}.pt", **LEGACY_FORMAT)
    for name, program in PROGRAMS.items():
        (folder / f"{name}.pkl").write_bytes(b"\x80\x04" + program)
        with zipfile.ZipFile(folder / f"{name}.pt", "w") as archive:
            archive.writestr("a/data.pkl", b"\x80\x02" + program)
    layout = '{"w": {"dtype": "F32", "shape": [4294967296], "data_offsets": [0, 16]}}'
    for name, header in {"claim": layout, "deep": '{"w":' + "[" * 100_000}.items():
        data = struct.pack("<Q", len(header)) + header.encode() + bytes(16)
        (folder / f"{name}.safetensors").write_bytes(data)
    return folder


READ_ALL = (
    PEAK
    + """
import resource, sys, time
from pathlib import Path
from streamseg.errors import WeightsError
from streamseg.models.weights import files

resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
for path in sorted(Path(sys.argv[1]).iterdir()):
    before, started_at = peak(), time.monotonic()
    try:
        files.read(path)
        outcome = "read"
    except WeightsError as error:
        outcome = "one line" if str(error).count(chr(10)) == 0 else "several lines"
    seconds = round(time.monotonic() - started_at, 1)
    print((peak() - before) >> 10, seconds, outcome, path.name, flush=True)
"""
)


def test_read_rejects_decompression_bombs_quickly(bombs):
    count = len(list(bombs.iterdir()))
    process = subprocess.run(
        [sys.executable, "-c", READ_ALL, bombs],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    lines = process.stdout.splitlines()
    assert len(lines) == count > 40, process.stderr
    for line in lines:
        megabytes, seconds, rest = line.split(" ", 2)
        assert rest.startswith("one line"), line
        assert int(megabytes) < 100, line
        assert float(seconds) < 10, line  # less than one second on an idle machine


@pytest.mark.slow
def test_read_limits_number_of_pickle_opcodes(tmp_path):
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04}" + b"N0" * 2_000_000 + b".")
    get_read_error(tmp_path / "a.pkl")


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_read_names_unsupported_tensors(tmp_path):
    contents = {
        "sparse": torch.eye(3).to_sparse(),
        "quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "complex": torch.zeros(3, dtype=torch.complex64),
        "eight bits": torch.zeros(3).to(torch.float8_e4m3fn),
    }
    for name, tensor in contents.items():
        torch.save({name: tensor}, tmp_path / "a.pt")
        message = get_read_error(tmp_path / "a.pt")
        assert f"'{name}' is no plain tensor" in message


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_read_rejects_non_finite_values(tmp_path, kind):
    torch.save({"w": torch.tensor([1, float("inf")], dtype=kind)}, tmp_path / "a.pt")
    assert "w contains a value that isn't finite" in get_read_error(tmp_path / "a.pt")


@given(st.data())
@settings(max_examples=150)
def test_read_of_damaged_file_raises_only_weights_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.pt"
    options = data.draw(st.sampled_from([{}, LEGACY_FORMAT]))
    torch.save({"model": STATE, "args": argparse.Namespace(a=1)}, path, **options)
    written = bytearray(path.read_bytes())
    for at in data.draw(st.lists(st.integers(2, len(written) - 1), min_size=1, max_size=4)):
        written[at] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(written[: data.draw(st.integers(2, len(written)))]))
    try:
        state = files.read(path).state
    except WeightsError as error:
        assert "\n" not in str(error)  # noqa: PT017 - damage may also have no effect
        return
    assert all(isinstance(each, torch.Tensor) for each in state.values())


def test_read_imports_and_calls_nothing_from_checkpoint(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "their_module.py").write_text("raise SystemExit('imported')\n")
    program = (
        b"}" + pickle_text("args") + b"ctheir_module\nThing\n)R}" + pickle_text("a") + b"K\x01sbs"
    )
    (tmp_path / "a.pkl").write_bytes(
        b"\x80\x02"
        + program
        + pickle_text("model")
        + pickle.dumps({"w": np.ones(2)}, 2)[2:-1]
        + b"s."
    )
    assert files.read(tmp_path / "a.pkl").state["w"].tolist() == [1, 1]
    assert "their_module" not in sys.modules
