"""detectron2's zoo files are pickles: their arrays are read, and nothing in them is run."""

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
def test_arrays_are_read_as_they_were_written(tmp_path, protocol, kind):
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


def test_a_zoo_file_loads_by_its_path(tmp_path):
    state = fixture("mask_rcnn_d2", "mask_rcnn_R_50_FPN_3x").empty("cpu")
    arrays = {name: np.full(tensor.shape, 7, np.float32) for name, tensor in state.items()}
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody"}))
    model = load_model("mask_rcnn_r50_fpn_d2", path, device="cpu")
    assert bool((model.network.backbone.body.conv1.weight == 7).all())


def test_what_torch_saved_in_its_old_format_is_still_read(tmp_path):
    path = tmp_path / "old.pth"
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    assert torch.equal(files.read(path).state["a"], torch.ones(2))


class _Runs:
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
        (np.ndarray, (1 << 50,)),  # as much memory as it likes
        (bytearray, 1 << 50),
        (getattr, "a", "upper"),
    ],
    ids=lambda call: getattr(call[0], "__name__", "x"),
)
def test_a_pickle_that_calls_anything_is_refused_in_one_line(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "hostile.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": _Runs(*call)}}, 2))
    with pytest.raises(WeightsError) as refused:
        files.read(path)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == [path]


def forged(shape, kind, raw):
    """An array that says of itself what isn't true."""
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
        ((1 << 40,), "f4", b"abcd"),  # more than there is
        ((-1, 7), "f4", b"abcd"),
        ((2,), "f4", b"abcdefg"),
        ((1,), "O", [print]),
        ((1,), "V4", b"abcd"),
        ((1,), "U1", b"abcd"),
        ((1,), "m8[s]", b"abcdefgh"),
    ],
)
def test_an_array_that_is_not_what_it_says_is_refused(tmp_path, shape, kind, raw):
    path = tmp_path / "forged.pkl"
    path.write_bytes(forged(shape, kind, raw))
    with pytest.raises(WeightsError, match=r"forged\.pkl: "):
        files.read(path)


@pytest.mark.parametrize(
    "content", [[1, 2], "text", 7, None, {"model": {"a": [1.0]}}, {"model": 3}]
)
def test_what_is_no_state_dict_is_said(tmp_path, content):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(content, 2))
    with pytest.raises(WeightsError, match=r"a\.pkl: "):
        files.read(path)


def test_a_value_that_is_not_finite_is_refused(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": np.array([np.nan], np.float32)}}))
    with pytest.raises(WeightsError, match="isn't finite"):
        files.read(path)


def text_of(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


DOUBLED = b"".join(
    b"}q%c" % n + (text_of("a") + b"h%cs" % (n - 1)) + (text_of("b") + b"h%cs" % (n - 1))
    for n in range(1, 40)
)
"""Dicts of which each holds the one before it twice."""


@pytest.mark.parametrize(
    "program",
    [
        b"}q\x00" + text_of("model") + b"h\x00s.",
        b"}q\x00" + DOUBLED + b".",
        b"}" + (text_of("a") + b"}") * 50_000 + b"s" * 50_000 + b".",
        b"}r" + struct.pack("<I", 1 << 30) + b".",
        b"}Q.",
        text_of("os\n" * 1000) + text_of("sys\ntem") + b"\x93.",
    ],
    ids=["holds itself", "doubles", "deep", "memo of 16 GB", "another file's", "long name"],
)
def test_a_program_that_would_take_forever_or_all_memory_is_refused_in_one_line(tmp_path, program):
    path = tmp_path / "hostile.pkl"
    path.write_bytes(b"\x80\x04" + program)
    with pytest.raises(WeightsError) as refused:
        files.read(path)
    message = str(refused.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < len(str(path)) + 250


def test_what_a_pickle_sets_on_what_it_names_is_gone_with_it(tmp_path):
    path = tmp_path / "hostile.pkl"
    change = b"N}" + text_of("__defaults__") + b"Ns" + text_of("seen") + b"K\x01s\x86b"
    path.write_bytes(b"\x80\x02c_codecs\nencode\n" + change + b".")
    made = {key: getattr(name, "make", None) for key, name in _NAMES.items()}
    before = {key: dict(getattr(each, "__dict__", {})) for key, each in made.items()}
    defaults = _NAMES["_codecs", "encode"].make.__defaults__
    with pytest.raises(WeightsError):
        files.read(path)
    assert {key: dict(getattr(each, "__dict__", {})) for key, each in made.items()} == before
    assert _NAMES["_codecs", "encode"].make.__defaults__ == defaults


def test_safetensors_may_begin_with_any_length(tmp_path):
    path = tmp_path / "plain.safetensors"
    beginnings = set()
    for length in range(1, 300):
        save_file({"x" * length: torch.ones(2)}, path)
        beginnings.add(path.read_bytes()[0])
        assert torch.equal(files.read(path).state["x" * length], torch.ones(2))
    assert 0x80 in beginnings


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damage_is_never_more_than_a_refusal(tmp_path_factory, data):
    arrays = {"model": {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}, "__author__": "x"}
    written = bytearray(pickle.dumps(arrays, data.draw(st.integers(2, 5))))
    for at in data.draw(st.lists(st.integers(2, len(written) - 1), max_size=4)):
        written[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(2, len(written)))
    path = tmp_path_factory.getbasetemp() / "damaged.pkl"
    path.write_bytes(bytes(written[:cut]) + struct.pack("<d", 0)[: data.draw(st.integers(0, 8))])
    try:
        content = files.read(path)
    except WeightsError:
        return
    assert all(isinstance(each, torch.Tensor) for each in content.state.values())
