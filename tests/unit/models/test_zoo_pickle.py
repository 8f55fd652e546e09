"""detectron2 zoo pickles: safe reading of arrays."""

from __future__ import annotations

import collections
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from support.parity import fixture

from streamseg.errors import WeightsError
from streamseg.models import load_model
from streamseg.models.weights import files
from streamseg.models.weights.torch_file import _NAMES


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8", "<f2", "<i8", "|u1", "|b1"])
def test_read_returns_arrays_of_pickle(tmp_path, protocol, kind):
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.integers(0, 2, (3, 4)).astype(kind),
        "b": np.asfortranarray(rng.integers(0, 2, (2, 3, 4)).astype(kind)),
        "c": np.array(1).astype(kind),
        "d": np.zeros((0, 5), kind),
    }
    path = tmp_path / "zoo.pkl"
    content = {
        "model": collections.OrderedDict(arrays),
        "__author__": "Detectron2 Model Zoo",
        "matching_heuristics": True,
    }
    path.write_bytes(pickle.dumps(content, protocol))
    state = files.read(path).state
    assert state.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(state[name].numpy(), array)
        assert tuple(state[name].shape) == array.shape


def test_load_model_reads_zoo_file(tmp_path):
    state = fixture("mask_rcnn_d2", "mask_rcnn_R_50_FPN_3x").empty("cpu")
    arrays = {name: np.full(tensor.shape, 7, np.float32) for name, tensor in state.items()}
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "author"}))
    model = load_model("mask_rcnn_r50_fpn_d2", path, device="cpu")
    assert bool((model.network.backbone.body.conv1.weight == 7).all())


def test_read_accepts_legacy_torch_format(tmp_path):
    path = tmp_path / "old.pth"
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    assert torch.equal(files.read(path).state["a"], torch.ones(2))


class _Call:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize(
    "call",
    [
        (os.system, "touch ran"),
        (eval, "open('ran', 'w')"),
        (np.load, "ran.npy"),
        (np.ndarray, (1 << 50,)),  # would allocate 1 PB or more
        (bytearray, 1 << 50),
        (getattr, "a", "upper"),
    ],
    ids=lambda call: getattr(call[0], "__name__", "x"),
)
def test_read_rejects_pickle_that_calls_functions(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "hostile.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": _Call(*call)}}, 2))
    with pytest.raises(WeightsError) as caught:
        files.read(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


def create_forged_array(shape, kind, raw):
    """Return the pickle of an array whose declared shape or dtype is false."""
    array = np.zeros(1, np.float32)
    text = pickle.dumps({"model": {"a": array}}, 2)
    del array
    state = (1, shape, np.dtype(kind), False, raw)

    class Array:
        def __reduce__(self):
            return np.zeros(1).__reduce__()[0], (np.ndarray, (0,), b"b"), state

    assert text
    return pickle.dumps({"model": {"a": Array()}}, 2)


@pytest.mark.parametrize(
    ("shape", "kind", "raw"),
    [
        ((1 << 40,), "f4", b"abcd"),  # larger than its data
        ((-1, 7), "f4", b"abcd"),
        ((2,), "f4", b"abcdefg"),
        ((1,), "O", [print]),
        ((1,), "V4", b"abcd"),
        ((1,), "U1", b"abcd"),
        ((1,), "m8[s]", b"abcdefgh"),
    ],
)
def test_read_rejects_forged_array(tmp_path, shape, kind, raw):
    path = tmp_path / "forged.pkl"
    path.write_bytes(create_forged_array(shape, kind, raw))
    with pytest.raises(WeightsError, match=r"forged\.pkl: "):
        files.read(path)


@pytest.mark.parametrize(
    "content", [[1, 2], "text", 7, None, {"model": {"a": [1.0]}}, {"model": 3}]
)
def test_read_rejects_pickle_without_state_dict(tmp_path, content):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(content, 2))
    with pytest.raises(WeightsError, match=r"a\.pkl: "):
        files.read(path)


def test_read_rejects_non_finite_values(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": np.array([np.nan], np.float32)}}))
    with pytest.raises(WeightsError, match="isn't finite"):
        files.read(path)


def pickle_text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


DOUBLED = b"".join(
    b"}q%c" % n + (pickle_text("a") + b"h%cs" % (n - 1)) + (pickle_text("b") + b"h%cs" % (n - 1))
    for n in range(1, 40)
)
"""Nested dicts, each of which contains the previous one twice."""


@pytest.mark.parametrize(
    "program",
    [
        b"}q\x00" + pickle_text("model") + b"h\x00s.",
        b"}q\x00" + DOUBLED + b".",
        b"}" + (pickle_text("a") + b"}") * 50_000 + b"s" * 50_000 + b".",
        b"}r" + struct.pack("<I", 1 << 30) + b".",
        b"}Q.",
        pickle_text("os\n" * 1000) + pickle_text("sys\ntem") + b"\x93.",
    ],
    ids=["holds itself", "doubles", "deep", "memo of 16 GB", "another file's", "long name"],
)
def test_read_limits_time_and_memory(tmp_path, program):
    path = tmp_path / "hostile.pkl"
    path.write_bytes(b"\x80\x04" + program)
    with pytest.raises(WeightsError) as caught:
        files.read(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < len(str(path)) + 250


def test_read_does_not_change_allowed_functions(tmp_path):
    path = tmp_path / "hostile.pkl"
    change = b"N}" + pickle_text("__defaults__") + b"Ns" + pickle_text("seen") + b"K\x01s\x86b"
    path.write_bytes(b"\x80\x02c_codecs\nencode\n" + change + b".")
    functions = {key: getattr(name, "make", None) for key, name in _NAMES.items()}
    before = {key: dict(getattr(each, "__dict__", {})) for key, each in functions.items()}
    defaults = _NAMES["_codecs", "encode"].make.__defaults__
    with pytest.raises(WeightsError):
        files.read(path)
    assert {key: dict(getattr(each, "__dict__", {})) for key, each in functions.items()} == before
    assert _NAMES["_codecs", "encode"].make.__defaults__ == defaults


def test_read_recognizes_safetensors_with_any_header_length(tmp_path):
    path = tmp_path / "plain.safetensors"
    first_bytes = set()
    for length in range(1, 300):
        save_file({"x" * length: torch.ones(2)}, path)
        first_bytes.add(path.read_bytes()[0])
        assert torch.equal(files.read(path).state["x" * length], torch.ones(2))
    assert 0x80 in first_bytes


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_read_of_damaged_file_raises_only_weights_error(tmp_path_factory, data):
    arrays = {"model": {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}, "__author__": "x"}
    data_written = bytearray(pickle.dumps(arrays, data.draw(st.integers(2, 5))))
    for at in data.draw(st.lists(st.integers(2, len(data_written) - 1), max_size=4)):
        data_written[at] = data.draw(st.integers(0, 255))
    length = data.draw(st.integers(2, len(data_written)))
    path = tmp_path_factory.getbasetemp() / "damaged.pkl"
    path.write_bytes(
        bytes(data_written[:length]) + struct.pack("<d", 0)[: data.draw(st.integers(0, 8))]
    )
    try:
        read_back = files.read(path)
    except WeightsError:
        return
    assert all(isinstance(each, torch.Tensor) for each in read_back.state.values())
