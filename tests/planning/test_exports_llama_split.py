"""llama.cpp's rule that turns ``-ts`` into layers, replayed in float32 over all splits.

The rule is `llama_model_base::load_tensors` of src/llama-model.cpp in ggml-org/llama.cpp:
`splits` are cumulative sums of the values, divided by the last; layer `il` goes to
`upper_bound(splits, float(il - i_gpu_start) / act_gpu_layers)`; the output layer is layer
`n_layer`; all arithmetic is in float.
"""

import itertools

import numpy as np
import pytest

from hypsolve.planning.exporters import export
from hypsolve.planning.exporters.llama_cpp import tensor_split
from tests.helpers.export_readers import devices_of
from tests.helpers.exports import commands, planned


def splits_of(n_layers, n_stages):
    """All ways to give every stage a layer."""
    cuts = itertools.combinations(range(1, n_layers), n_stages - 1)
    return [np.diff((0, *each, n_layers)).tolist() for each in cuts]


def planned_devices(splits):
    """Device of each layer as planned, and of the output layer: the last."""
    n_layers = sum(splits[0])
    ends = np.cumsum(splits, axis=1)
    devices = (ends[:, None, :] <= np.arange(n_layers)[None, :, None]).sum(axis=2)
    last = np.full((len(splits), 1), len(splits[0]) - 1)
    return np.concatenate([devices, last], axis=1)


@pytest.mark.parametrize("n_stages", [1, 2, 3])
def test_every_split_of_up_to_80_layers_lands_as_planned(n_stages):
    """A wrong layer on a device is memory that is not there, found only when loading ends."""
    n_checked = 0
    for n_layers in range(n_stages, 81):
        splits = splits_of(n_layers, n_stages)
        exported = [tensor_split(tuple(split)) for split in splits]
        assert np.array_equal(devices_of(exported, n_layers), planned_devices(splits))
        n_checked += len(splits)
    assert n_checked == {1: 80, 2: 3160, 3: 82_160}[n_stages]


def test_counts_without_the_output_layer_would_land_elsewhere():
    """The replay can tell: plain counts of layers put some layers on the wrong device."""
    splits = splits_of(32, 2)
    wrong = devices_of(splits, 32) != planned_devices(splits)
    assert wrong.any(axis=1).sum() > len(splits) // 2


def test_shares_that_are_rounded_would_land_elsewhere():
    """Shares with two decimals fail for some splits: whole numbers are exported instead."""
    n_failed = 0
    for n_layers in range(2, 81):
        splits = splits_of(n_layers, 2)
        shares = np.array([tensor_split(tuple(s)) for s in splits]) / (n_layers + 1)
        n_failed += (
            (devices_of(shares.round(2), n_layers) != planned_devices(splits)).any(axis=1).sum()
        )
    assert n_failed > 100


@pytest.mark.parametrize(
    "cuts", [(0, 10, 20, 34), (0, 2, 34), (0, 32, 34), (0, 12, 13, 14, 34)]
)
def test_the_printed_values_are_those_of_the_rule(cuts):
    (server,) = commands(export(planned(cuts), "llama.cpp"), "llama-server")
    values = [[float(value) for value in server["-ts"].split(",")]]
    stages = np.searchsorted(cuts, np.arange(34), side="right") - 1
    assert devices_of(values, 32, int(server["-ngl"]))[0].tolist() == stages[1:].tolist()
    assert server["--device"].split(",") == [
        "CUDA0",
        *(f"RPC{k}" for k in range(len(cuts) - 2)),
    ]
