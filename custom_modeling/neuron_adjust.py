"""Neuron Adjust (section 3 of arXiv:2503.21730): single neurons are moved from the forget to the retain distribution.

Torch only. Whether a neuron is moved is drawn by a hash of (seed, layer, neuron, position id, token id) alone, so
greedy decoding is deterministic, a batch gives what its rows give alone, and every backend draws the same bits. All
integers stay below 2^62 and fit into int64.
"""

import hashlib

import torch

PRIME = 2**31 - 1
POSITION, TOKEN, NEURON, FINAL = 1327217885, 1732584193, 271733879, 414899455


def neuron_key(seed, layer, neuron):
    """The neuron's part of the hash, below PRIME."""
    digest = hashlib.sha256(f"{seed}|{layer}|{neuron}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % PRIME


def scramble(x, constant):
    """((x + constant) mod p)^5 mod p, a permutation of the residues; x: int64 from 0 to below 2^32."""
    # Mathematical % and no bit operations: ONNX Runtime on CUDA has none, and torch.compile hung on a folded form.
    y = (x + constant) % PRIME
    square = y * y % PRIME
    return square * square % PRIME * y % PRIME


def draw_context(position_ids, token_ids):
    """The token's part of the hash: int64, in the broadcast shape of both."""
    # Continuous batching passes int32, in which the products overflow.
    return scramble(scramble(position_ids.long(), POSITION) + token_ids.long(), TOKEN)


def uniform_draws(context, keys):
    """Uniform numbers in [0, 1) with 24 bits: context (...) and keys (n,) int64 -> (..., n) float32."""
    hashed = scramble(scramble(context.unsqueeze(-1) + keys, NEURON), FINAL)
    return (hashed // 128).float() * 2.0**-24


def thresholds(params, draws, position_ids):
    """The log-likelihood ratio above which a neuron is moved: max(0, logit u), in the form that `adjust` compares.

    params: (4, n) float32, the rows mu_f, sd_f, mu_r, sd_r; draws: (..., n) float32, or None for a half everywhere;
    position_ids: (...). Returns (..., n): twice the threshold minus twice ln(sd_r / sd_f), compared with zr^2 - zf^2;
    infinite at position 0. That is an attention sink, whose activations are far outside both distributions and which
    all later tokens attend to: moving it can ruin any text.
    """
    least = 2 * (params[1].log() - params[3].log())
    above = least if draws is None else 2 * torch.logit(draws).clamp(min=0) + least
    return torch.where(position_ids.unsqueeze(-1) == 0, torch.inf, above)


def standardisers(params):
    """What `adjust` needs of params (4, n): 1 / sd_f, -mu_f / sd_f, 1 / sd_r, -mu_r / sd_r, mu_r, sd_r, (n,) each."""
    mu_f, sd_f, mu_r, sd_r = params
    scale_f, scale_r = 1 / sd_f, 1 / sd_r
    return scale_f, -mu_f * scale_f, scale_r, -mu_r * scale_r, mu_r, sd_r


def adjust(pre_activation, index, threshold, scale_f, offset_f, scale_r, offset_r, mu_r, sd_r):
    """Move the selected neurons from the forget to the retain distribution if the token looks like a forget token.

    pre_activation: (..., d_ff), any float dtype, changed in place; index: (n,); threshold: (..., n), see `thresholds`;
    the others: (n,) each, see `standardisers`.
    With zf = (v - mu_f) / sd_f, zr = (v - mu_r) / sd_r and d = (zr^2 - zf^2) / 2 + ln(sd_r / sd_f), the log-likelihood
    ratio, v becomes mu_r - zf * sd_r where d > 0 and u < sigmoid(d). Densities are never divided: both underflow.
    """
    # Few operations, because with one token each costs more to start than to compute, in every layer.
    value = pre_activation.index_select(-1, index)
    dtype = value.dtype
    if dtype != torch.float32:
        value = value.float()
    zf = torch.addcmul(offset_f, value, scale_f)
    zr = torch.addcmul(offset_r, value, scale_r)
    moved = torch.addcmul(zr * zr, zf, zf, value=-1) > threshold
    adjusted = torch.where(moved, torch.addcmul(mu_r, zf, sd_r, value=-1), value)
    return pre_activation.index_copy_(-1, index, adjusted if dtype == torch.float32 else adjusted.to(dtype))


def adjust_official(pre_activation, index, params):
    """What the authors' published code does instead, for comparison: see `unskill export --compat official`.

    params: (4, n) float32, the rows mu_f, mu_f again, mu_r and the retain set's variance, because that code takes the
    mean for the forget deviation and the variance for the retain one. Densities are divided in the model's dtype, in
    which both may underflow, and one number of torch's own generator decides for all tokens and neurons of a call. It
    draws one number per row, so only batches of one row work; others raise RuntimeError.
    """
    if pre_activation.shape[0] != 1:
        raise RuntimeError(
            "unskill: a checkpoint with compat 'official' takes batches of one row only, as that code does."
        )
    value = pre_activation.index_select(-1, index)
    mu_f, sd_f, mu_r, sd_r = params.to(value.dtype)
    root = (2 * torch.pi) ** 0.5
    forget = torch.exp(-(((value - mu_f) / sd_f) ** 2) / 2) / (sd_f * root)
    retain = torch.exp(-(((value - mu_r) / sd_r) ** 2) / 2) / (sd_r * root)
    draw = torch.rand(pre_activation.shape[0], device=value.device)
    moved = (retain <= forget) & (draw < forget / (forget + retain))
    adjusted = torch.where(moved, mu_r - sd_r / sd_f * (value - mu_f), value)
    return pre_activation.index_copy_(-1, index, adjusted)


def joined(tensors):
    """Tensors of several MLPs joined, on the device of the first."""
    device = tensors[0].device
    if any(tensor.device != device for tensor in tensors):
        tensors = [tensor.to(device) for tensor in tensors]
    return torch.cat(tensors, -1)


def draw_positions(count, position_ids=None, attention_mask=None, past_key_values=None):
    """Position ids (batch or 1, count) of a forward's tokens, for the draws only.

    As given, else from a mask of two dimensions, else continuing the cache.
    """
    if position_ids is not None:
        return position_ids
    # On 5.x it may also be a dict of masks by kind of layer.
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        return (attention_mask.long().cumsum(-1) - 1)[:, -count:].clamp(min=0)
    past = 0 if past_key_values is None else past_key_values.get_seq_length()
    # A static cache's length is a tensor on its device.
    return (past + torch.arange(count, device=getattr(past, "device", None))).unsqueeze(0)
