"""The custom operators of ONNX models, domain `ai.unskill`, each with a body of standard operators.

Without the library of `exporter.onnx.library`, ONNX Runtime replaces the node by its body; with it, it runs a kernel.
Both repeat `custom_modeling` in float32: draws and hits are equal bit by bit, and neurons are moved by the same rule;
hits by sums (RegionDetect) may differ where rounding decides.
Kernels check all shapes; bodies broadcast as standard operators do.

NeuronDraws(position_ids, token_ids, keys) -> draws
    position_ids, token_ids: int64 (batch, positions), from 0 to below 2^31; keys: int64 (n,), see `neuron_key`;
    draws: float32 (batch, positions, n). They depend on no activation, so one node can draw for all layers.
NeuronAdjust(pre_activation, index, threshold, standardisers) -> adjusted
    pre_activation, adjusted: float32 (batch, positions, d_ff); index: int64 (n,), from 0 to below d_ff;
    threshold: float32 (batch, positions, n), see `thresholds`; standardisers: float32 (6, n), the rows of
    `standardisers`.
    Where PyTorch uses fused multiply-add (AVX2, CUDA), the last bits of `adjust` differ; bodies and kernels compute
    without it everywhere.
KeySpaceDetect(key, bounds) -> hit
    key: float32 (batch, positions, d_ff); bounds: float32 (c, 2, d_ff), lower and upper; hit: bool (batch, positions).
    Without tokens or hypercubes the body's result has a wrong shape in ONNX Runtime up to 1.30 at least, as empty sums
    have there; 1.32 is right.
RegionDetect(key, directions, limits) -> hit
    key: float32 (batch, positions, d_ff); directions: float32 (r, d_ff); limits: float32 (c, 2, r), lower and upper of
    the key's coordinates, its sums with each direction as weights; hit: bool (batch, positions).
    Sums are added up in another order here and there, so hits are those of the checkpoint but where a coordinate lies
    within rounding of a limit. Empty shapes: as KeySpaceDetect.
"""

from __future__ import annotations

import onnx

from custom_modeling.neuron_adjust import FINAL, NEURON, POSITION, PRIME, TOKEN

DOMAIN, VERSION = "ai.unskill", 1
NEURON_DRAWS, NEURON_ADJUST = "NeuronDraws", "NeuronAdjust"
KEY_SPACE_DETECT, REGION_DETECT = "KeySpaceDetect", "RegionDetect"
OPSET = 18
"""Version of the standard operators in the bodies, and in a model with these functions."""


def functions() -> list[onnx.FunctionProto]:
    """The operators, for the field `functions` of a ModelProto."""
    return [neuron_draws(), neuron_adjust(), key_space_detect(), region_detect()]


def neuron_draws() -> onnx.FunctionProto:
    """`uniform_draws(draw_context(position_ids, token_ids), keys)`."""
    # The CUDA provider has no bitwise operators, and all providers have no more than these four for int64.
    return _function(
        f"{NEURON_DRAWS} (position_ids, token_ids, keys) => (draws)",
        f"""
        p = Constant <value_int: int = {PRIME}> ()
        {_scramble("position", "position_ids", POSITION)}
        both = Add(position, token_ids)
        {_scramble("context", "both", TOKEN)}
        last = Constant <value_ints: ints = [-1]> ()
        contexts = Unsqueeze(context, last)
        summed = Add(contexts, keys)
        {_scramble("neuron", "summed", NEURON)}
        {_scramble("hashed", "neuron", FINAL)}
        spare = Constant <value_int: int = 128> ()
        kept = Div(hashed, spare)
        whole = Cast <to: int = {onnx.TensorProto.FLOAT}> (kept)
        unit = Constant <value_float: float = {2.0**-24!r}> ()
        draws = Mul(whole, unit)
        """,
    )


def neuron_adjust() -> onnx.FunctionProto:
    """`adjust`, in the same order of float operations."""
    return _function(
        f"{NEURON_ADJUST} (pre_activation, index, threshold, standardisers) => (adjusted)",
        """
        scale_f, offset_f, scale_r, offset_r, mu_r, sd_r = Split <axis: int = 0, num_outputs: int = 6> (standardisers)
        value = Gather <axis: int = -1> (pre_activation, index)
        scaled_f = Mul(value, scale_f)
        zf = Add(offset_f, scaled_f)
        scaled_r = Mul(value, scale_r)
        zr = Add(offset_r, scaled_r)
        square_f = Mul(zf, zf)
        square_r = Mul(zr, zr)
        ratio = Sub(square_r, square_f)
        moved = Greater(ratio, threshold)
        stretched = Mul(zf, sd_r)
        retained = Sub(mu_r, stretched)
        chosen = Where(moved, retained, value)
        shape = Shape(value)
        places = Expand(index, shape)
        adjusted = ScatterElements <axis: int = -1> (pre_activation, places, chosen)
        """,
    )


def key_space_detect() -> onnx.FunctionProto:
    """`inside_hypercubes`, as "not outside", so that a NaN in key or bounds counts as inside."""
    return _function(f"{KEY_SPACE_DETECT} (key, bounds) => (hit)", f"{_PLACES} {_inside_any('key', 'bounds')}")


def region_detect() -> onnx.FunctionProto:
    """`inside_regions` without bounds, as "not outside" too. No MatMul, whose precision depends on the provider."""
    return _function(
        f"{REGION_DETECT} (key, directions, limits) => (hit)",
        f"""
        {_PLACES}
        once = Unsqueeze(key, before_last)
        products = Mul(once, directions)
        coordinates = ReduceSum <keepdims: int = 0> (products, last)
        {_inside_any("coordinates", "limits")}
        """,
    )


def _function(signature: str, body: str) -> onnx.FunctionProto:
    header = f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>'
    return onnx.parser.parse_function(f"{header} {signature} {{ {body} }}")


_PLACES = """
    before_last = Constant <value_ints: ints = [-2]> ()
    last = Constant <value_ints: ints = [-1]> ()
"""


def _inside_any(vector: str, bounds: str) -> str:
    """ONNX text for hit = whether a vector (batch, positions, n) is inside any of `bounds` (c, 2, n)."""
    # Counted in floats: not every provider reduces bools, and the sum of no regions is 0, but a maximum fails.
    return f"""
        zero = Constant <value_int: int = 0> ()
        one = Constant <value_int: int = 1> ()
        half = Constant <value_float: float = 0.5> ()
        lower = Gather <axis: int = 1> ({bounds}, zero)
        upper = Gather <axis: int = 1> ({bounds}, one)
        vector = Unsqueeze({vector}, before_last)
        below = Less(vector, lower)
        above = Greater(vector, upper)
        outside = Or(below, above)
        outside_float = Cast <to: int = {onnx.TensorProto.FLOAT}> (outside)
        outside_count = ReduceSum <keepdims: int = 0> (outside_float, last)
        inside = Less(outside_count, half)
        inside_float = Cast <to: int = {onnx.TensorProto.FLOAT}> (inside)
        inside_count = ReduceSum <keepdims: int = 0> (inside_float, last)
        hit = Greater(inside_count, half)
    """


def _scramble(result: str, x: str, constant: int) -> str:
    """ONNX text for result = ((x + constant) mod p)^5 mod p."""
    return f"""
        {result}_constant = Constant <value_int: int = {constant}> ()
        {result}_sum = Add({x}, {result}_constant)
        {_modulo(f"{result}_1", f"{result}_sum")}
        {result}_product_2 = Mul({result}_1, {result}_1)
        {_modulo(f"{result}_2", f"{result}_product_2")}
        {result}_product_4 = Mul({result}_2, {result}_2)
        {_modulo(f"{result}_4", f"{result}_product_4")}
        {result}_product_5 = Mul({result}_4, {result}_1)
        {_modulo(result, f"{result}_product_5")}
    """


def _modulo(result: str, x: str) -> str:
    """ONNX text for result = x mod p, for x >= 0: Div of integers truncates."""
    return f"""
        {result}_quotient = Div({x}, p)
        {result}_multiple = Mul({result}_quotient, p)
        {result} = Sub({x}, {result}_multiple)
    """
