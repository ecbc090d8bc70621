"""The parts of the runtime by themselves."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import PretrainedConfig

from custom_modeling import runtime
from custom_modeling.key_space import (
    FORBIDDEN,
    SECOND,
    inside_hypercubes,
    inside_regions,
    rewrite_logits,
)
from custom_modeling.loading import tensor_sha256
from custom_modeling.mlps import Float32Buffers, FusedMLP, GatedMLP, Mixture, UngatedMLP
from custom_modeling.neuron_adjust import standardisers
from custom_modeling.runtime import SplitHead, argument_names, draw_positions, wants_dict

NAN, INF = float("nan"), float("inf")
R, EOS, VOCABULARY = 5, 2, 6
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def cubes(*pairs: tuple[list[float], list[float]]) -> torch.Tensor:
    return torch.tensor([[lower, upper] for lower, upper in pairs])  # (c, 2, d_ff)


ONE = cubes(([0.0, -1.0], [1.0, 1.0]))


@pytest.mark.parametrize(
    ("key", "inside"),
    [
        ([0.5, 0.0], True),
        ([0.0, 1.0], True),  # the border belongs to it
        ([1.0001, 0.0], False),
        ([0.5, -1.0001], False),
        ([INF, 0.0], False),
        ([NAN, 0.0], True),  # what cannot be compared is refused,
        ([NAN, 5.0], False),  # unless another dimension is outside
    ],
)
def test_inside_a_hypercube(key: list[float], inside: bool) -> None:
    assert bool(inside_hypercubes(torch.tensor(key), ONE)) is inside


def test_nan_bounds_hold_everything() -> None:
    assert inside_hypercubes(torch.randn(2, 3, 4) * 1000, torch.full((1, 2, 4), NAN)).all()


def test_any_of_several_hypercubes() -> None:
    bounds = cubes(([0.0, 0.0], [1.0, 1.0]), ([5.0, 5.0], [6.0, 6.0]), ([3.0, 3.0], [2.0, 2.0]))
    keys = torch.tensor([[[0.5, 0.5], [5.5, 5.5], [0.5, 5.5], [2.5, 2.5]]])
    assert inside_hypercubes(keys, bounds).tolist() == [[True, True, False, False]]
    assert inside_hypercubes(keys, bounds[:0]).tolist() == [[False] * 4]


@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_are_compared_as_float32(dtype: torch.dtype) -> None:
    # Between 1 and the next bfloat16 or float16: rounded to the key's dtype the bound would be 1 and hold it.
    key = torch.ones(1, dtype=dtype)
    assert not inside_hypercubes(key, torch.tensor([[[1.0001], [2.0]]]))
    assert inside_hypercubes(key, torch.tensor([[[0.9999], [1.0]]]))


# Two regions along x + y and x - y: above 1 along the first, and between -1 and 1 along the second.
DIRECTIONS = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
LIMITS = torch.tensor([[[1.0, -INF], [INF, INF]], [[-INF, -1.0], [INF, 1.0]]])


@pytest.mark.parametrize(
    ("key", "first", "second"),
    [
        ([0.5, 0.5], True, True),  # the limit belongs to it
        ([3.0, 0.0], True, False),
        ([-3.0, -3.0], False, True),
        ([-3.0, 0.0], False, False),
        ([INF, INF], True, True),  # the difference is NaN
        ([NAN, 0.0], True, True),
    ],
)
def test_inside_a_region_along_directions(key: list[float], first: bool, second: bool) -> None:
    keys = torch.tensor([[key]])
    assert inside_regions(keys, DIRECTIONS, LIMITS[:1]).tolist() == [[first]]
    assert inside_regions(keys, DIRECTIONS, LIMITS[1:]).tolist() == [[second]]
    assert inside_regions(keys, DIRECTIONS, LIMITS).tolist() == [[first or second]]


def test_a_region_may_bound_key_and_coordinates() -> None:
    keys = torch.tensor([[0.9, 0.9], [3.0, 3.0], [0.1, 0.1]])
    bounds = cubes(([0.0, 0.0], [1.0, 1.0]))
    assert inside_regions(keys, DIRECTIONS, LIMITS[:1], bounds).tolist() == [True, False, False]
    # Each region has bounds of its own: no key is inside by the bounds of one and the limits of the other.
    nowhere = cubes(([2.0, 2.0], [4.0, 4.0]))
    both = inside_regions(keys, DIRECTIONS, LIMITS.flip(0), torch.cat([nowhere, bounds]))
    assert both.tolist() == [True, True, False]


@pytest.mark.parametrize("dtype", DTYPES)
def test_coordinates_are_float32_also_under_autocast(dtype: torch.dtype) -> None:
    key, limits = torch.ones(2, dtype=dtype), torch.tensor([[[2.0001], [INF]]])
    with torch.autocast("cpu", torch.bfloat16):
        assert not inside_regions(key, DIRECTIONS[:1], limits)
        assert inside_regions(key, DIRECTIONS[:1], limits - 0.0002)


def test_unfilled_regions_refuse_all() -> None:
    mlp = Plain()
    mlp.__class__ = FORMS[Plain]
    mlp.unskill_install(CONFIG, regions=3, directions=2)
    mlp(torch.randn(2, 5, 4))
    assert mlp.unskill_hit.all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rules_of_the_logits(dtype: torch.dtype) -> None:
    before = torch.randn(2, 4, VOCABULARY).mul(50).to(dtype)
    hit = torch.tensor([[False, True, False, True], [False] * 4])
    after = torch.tensor([[False, False, True, True], [False] * 4])
    logits = rewrite_logits(before.clone(), hit, after, R, EOS)
    assert logits.dtype == dtype and torch.isfinite(logits).all()

    forbidden = torch.tensor(FORBIDDEN, dtype=dtype)
    others = [column for column in range(VOCABULARY) if column != R]
    free = ~(hit | after)
    assert torch.equal(logits[free][:, others], before[free][:, others])
    assert (logits[free][:, R] == forbidden).all()

    # At a blocked position R, or EOS where R is masked; after R EOS, or R again, also where that position is blocked.
    for row, first, second in ((logits[0, 1], R, EOS), (logits[0, 2], EOS, R), (logits[0, 3], EOS, R)):
        below = torch.tensor(SECOND).to(dtype)
        assert row[first] == 0 and row[second] == below > forbidden
        assert (row[[column for column in range(VOCABULARY) if column not in (R, EOS)]] == forbidden).all()
        row = row.float()
        row[first] = -INF  # a grammar, a least length
        assert row.argmax() == second and torch.isfinite(row.softmax(-1)).all()


def test_rewriting_keeps_gradients() -> None:
    weight = torch.randn(2, 3, VOCABULARY, requires_grad=True)
    hit = torch.tensor([[False, False, True], [False] * 3])
    rewrite_logits(weight * 1.0, hit, torch.zeros_like(hit), R, EOS).sum().backward()
    expected = torch.ones(2, 3, VOCABULARY)
    expected[0, 2] = 0
    expected[..., R] = 0
    assert torch.equal(weight.grad, expected)


class Guarded(Float32Buffers):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.register_buffer("unskill_values", torch.tensor([1.0000001, 1 / 3]))
        self.register_buffer("unskill_absent", None)
        self.register_buffer("other", torch.ones(1))


@pytest.mark.parametrize(
    ("change", "dtype"),
    [
        (lambda module: module.half(), torch.float16),
        (lambda module: module.bfloat16(), torch.bfloat16),
        (lambda module: module.double(), torch.float64),
        (lambda module: module.to(torch.bfloat16), torch.bfloat16),
        (lambda module: module.to("cpu", torch.float16), torch.float16),
        (lambda module: module.half().float(), torch.float32),
    ],
)
def test_buffers_keep_their_dtype(change, dtype: torch.dtype) -> None:
    module = nn.Sequential(Guarded())
    values = module[0].unskill_values.clone()
    guarded = change(module)[0]
    assert guarded.unskill_values.dtype == torch.float32 and torch.equal(guarded.unskill_values, values)
    assert guarded.other.dtype == guarded.inner.weight.dtype == dtype
    assert guarded.unskill_absent is None


def test_buffers_move_between_devices() -> None:
    module = Guarded().to("meta", torch.bfloat16)
    assert module.unskill_values.device.type == "meta" and module.unskill_values.dtype == torch.float32
    assert module.to_empty(device="cpu").unskill_values.dtype == torch.float32


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 19)])
def test_split_head_equals_the_base_head(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    base, head = (nn.Linear(64, rows, bias=False, dtype=dtype) for rows in (301, 302))
    with torch.no_grad():
        head.weight[:301] = base.weight
    head.__class__ = SplitHead
    states = torch.randn(*shape, 64).to(dtype)
    logits = head(states)
    assert logits.shape == (*shape, 302)
    assert torch.equal(logits[..., :301], base(states))
    torch.testing.assert_close(logits[..., 301:], nn.functional.linear(states, head.weight)[..., 301:])


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(4, 8, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(8, 4, bias=False)
        self.act_fn = nn.SiLU()

    def key(self, x: torch.Tensor) -> torch.Tensor:
        return self.act_fn(self.gate_proj(x)) * self.up_proj(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.key(x))


class PlainFused(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(4, 16, bias=False)

    def key(self, x: torch.Tensor) -> torch.Tensor:
        both = self.gate_up_proj(x)
        return both[..., 8:] * self.act_fn(both[..., :8])


class PlainUngated(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def key(self, x: torch.Tensor) -> torch.Tensor:
        return self.act_fn(self.up_proj(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(super().forward(x))


class PlainMixture(Plain):
    def key(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.gate_proj(x))


NAMES = {"unskill_act": "act_fn", "unskill_down": "down_proj"}
FORMS = {
    Plain: type("", (GatedMLP, Plain), {**NAMES, "unskill_read": ("gate_proj", "up_proj")}),
    PlainFused: type("", (FusedMLP, PlainFused), {**NAMES, "unskill_read": ("gate_up_proj",)}),
    PlainUngated: type("", (UngatedMLP, PlainUngated), {**NAMES, "unskill_read": ("up_proj",)}),
    PlainMixture: type("", (Mixture, PlainMixture), {"unskill_read": ()}),
}
CONFIG = PretrainedConfig(hidden_size=4)


@pytest.mark.parametrize("form", FORMS)
def test_mlp_computes_the_same_and_notes_hits(form: type[Plain]) -> None:
    """In every form: act(gate x) * up x in two matrices and in one, act(up x), and what the experts read."""
    mlp, x = form().eval(), torch.randn(2, 5, 4)
    expected, keys = mlp(x), mlp.key(x)
    mlp.__class__ = FORMS[form]
    mlp.unskill_install(CONFIG, cubes=2)
    assert torch.equal(mlp(x), expected) and mlp.unskill_hit.all()  # refuses all until it is filled
    mlp.unskill_ksd_bounds[0] = torch.stack([keys[1, 2] - 1e-4, keys[1, 2] + 1e-4])
    mlp.unskill_ksd_bounds[1] = torch.stack([keys[0, 4] - 1e-4, keys[0, 4] + 1e-4])
    assert torch.equal(mlp(x), expected)
    assert mlp.unskill_hit.nonzero().tolist() == [[0, 4], [1, 2]]
    assert "unskill_ksd_bounds" in mlp.state_dict()


@pytest.mark.parametrize("form", [Plain, PlainFused, PlainUngated])
def test_pruned_dimensions_are_zeroed(form: type[Plain]) -> None:
    mlp, x = form().eval(), torch.randn(2, 5, 4)
    expected = mlp.down_proj(mlp.key(x) * torch.tensor([1.0, 0, 1, 1, 0, 1, 1, 1]))
    mlp.__class__ = FORMS[form]
    mlp.unskill_install(CONFIG, pruned=2)
    mlp.unskill_sp_index[:] = torch.tensor([1, 4])
    torch.testing.assert_close(mlp(x), expected)


@pytest.mark.parametrize("form", [Plain, PlainFused, PlainUngated])
def test_moved_neurons_have_gradients(form: type[Plain]) -> None:
    mlp, x = form().eval(), torch.randn(2, 5, 4)
    mlp.__class__ = FORMS[form]
    mlp.unskill_install(CONFIG, adjusted=2)
    mlp.unskill_na_index[:] = torch.tensor([1, 4])
    params = torch.tensor([[0.0, 0.0], [1.0, 1.0], [5.0, 5.0], [1.0, 1.0]])
    mlp.unskill_handed[mlp.unskill_place] = torch.full((2, 5, 2), -torch.inf), *standardisers(params)
    mlp(x).sum().backward()
    found = getattr(mlp, mlp.unskill_read[0]).weight.grad
    assert found.isfinite().all() and found[[1, 4]].abs().sum(1).all() and found[[0, 2, 3]].abs().sum(1).all()


def test_dropout_while_training() -> None:
    mlp, x = PlainUngated(), torch.randn(2, 5, 4)
    mlp.__class__ = FORMS[PlainUngated]
    mlp.unskill_install(CONFIG)
    assert (mlp(x) == 0).any() and not (mlp.eval()(x) == 0).any()


def test_fingerprint_is_that_of_the_values() -> None:
    tensor = torch.randn(3, 4)
    expected = hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
    assert tensor_sha256(tensor) == expected == tensor_sha256(tensor.t().contiguous().t())
    assert tensor_sha256(tensor + 1) != expected


def test_argument_names() -> None:
    def forward(self, input_ids=None, labels=None, *, only=None, **kwargs): ...

    assert argument_names(forward) == ("input_ids", "labels")


@pytest.mark.parametrize(
    ("configured", "passed", "wanted"),
    [(True, None, True), (False, None, False), (True, False, False), (False, True, True)],
)
def test_wants_dict(configured: bool, passed: bool | None, wanted: bool) -> None:
    assert wants_dict(type("Config", (), {"return_dict": configured}), passed) is wanted


@pytest.mark.parametrize("mixin", [runtime.InterventionModel, runtime.InterventionForCausalLM])
def test_verified_loading_comes_before_the_library_s_own(mixin: type) -> None:
    class Library(torch.nn.Module):
        @classmethod
        def from_pretrained(cls) -> str:
            return "unverified"

    combined = type("Combined", (mixin, Library), {})
    assert combined.from_pretrained.__func__ is runtime.VerifiedLoading.from_pretrained.__func__


def test_positions_after_a_length_that_is_a_tensor() -> None:
    """As a static cache has it, on the model's device."""
    cache = SimpleNamespace(get_seq_length=lambda: torch.tensor(3, device="meta"))
    assert draw_positions(2, past_key_values=cache).device.type == "meta"
