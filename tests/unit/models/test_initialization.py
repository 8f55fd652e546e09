"""Networks that are built without random initial weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from streamseg.models import load_model
from streamseg.models.layers.initialization import SkipRandomInit


def test_random_fills_are_skipped_and_others_are_not() -> None:
    before = torch.get_rng_state()
    with SkipRandomInit():
        drawn = torch.zeros(3)
        nn.init.normal_(drawn)
        nn.init.kaiming_uniform_(drawn[None])
        constant = nn.init.ones_(torch.zeros(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert drawn.tolist() == [0, 0, 0]
    assert constant.tolist() == [1, 1]
    assert nn.init.normal_(drawn).any()


@pytest.mark.parametrize("name", ["nanomask", "solov2_light_r18"])
def test_loaded_network_has_every_tensor_of_its_file(tmp_path, name: str) -> None:
    state = load_model(name, weights="none", device="cpu").network.state_dict()
    torch.save(state, tmp_path / "weights.pth")
    loaded = load_model(name, tmp_path / "weights.pth", device="cpu").network.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in loaded.items())
