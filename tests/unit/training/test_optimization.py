"""Optimization: frozen parameters and batch norms."""

from __future__ import annotations

import pytest
from torch import nn

from streamseg.errors import ConfigError
from streamseg.training.optimization import freeze_parameters, set_train_mode


def test_frozen_batch_norms_keep_their_statistics():
    network = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2))
    freeze_parameters(network, ("0",))
    set_train_mode(network)
    assert [module.training for module in network] == [False, True]
    with pytest.raises(ConfigError, match="nothing is left to be trained"):
        freeze_parameters(network, ("1",))
