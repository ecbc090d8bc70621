"""Names, shapes and dtypes of the buffers are a format: checkpoints that were written keep them for good."""

from __future__ import annotations

import torch

from custom_modeling.buffers import REFUSAL_STATES, in_mlp, is_unskill, layer_of, mlp_forms, states_form, unfilled


def test_the_buffers_of_the_format() -> None:
    assert mlp_forms(64, cubes=3, adjusted=5, pruned=2) == {
        "unskill_na_index": ((5,), torch.int64),
        "unskill_na_params": ((4, 5), torch.float32),
        "unskill_na_key": ((5,), torch.int64),
        "unskill_sp_index": ((2,), torch.int64),
        "unskill_ksd_bounds": ((3, 2, 64), torch.float32),
    }
    assert mlp_forms(64, regions=3, directions=2) == {
        "unskill_ksd_directions": ((2, 64), torch.float32),
        "unskill_ksd_limits": ((3, 2, 2), torch.float32),
    }
    assert mlp_forms(64) == {}
    assert states_form(32) == ((2, 32), torch.float32)
    assert REFUSAL_STATES == "unskill_refusal.unskill_states"


def test_names_inside_the_base_model() -> None:
    assert in_mlp(17, "unskill_na_key") == "layers.17.mlp.unskill_na_key"
    assert layer_of("layers.17.mlp.unskill_na_key") == 17
    for name in ("unskill_na_key", "layers.17.mlp.unskill_na_key", "model.unskill_refusal.unskill_states"):
        assert is_unskill(name)
    for name in ("model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.my_unskill_na_key"):
        assert not is_unskill(name)


def test_a_buffer_that_nothing_filled_refuses() -> None:
    for name, form in mlp_forms(4, cubes=1, adjusted=1).items():
        tensor = unfilled(form)
        assert (tensor.shape, tensor.dtype) == form
        assert bool(torch.isnan(tensor).all()) == (tensor.dtype == torch.float32), name
