"""The final states that make any output head refuse: R at blocked positions, EOS after R, R nowhere else.

Engines with their own head see only the base model's final hidden states. So the refusal is built from two directions:
u, along which every ordinary final state is negative, and v, across u, along which EOS leads all other tokens. R's
head row is along u. At a blocked position R leads EOS, which leads the others; after R, EOS leads R, which leads the
others. So callers that mask the first choice get the second, and no answer. Both directions have the largest margin,
found as a least distance problem.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import MoeModelOutputWithPast

# Minimum probability of R at a blocked position, and of EOS after R.
CERTAIN = 0.999
# Minimum number of positions, not used to find the direction, at which R must never be the argmax.
MINIMUM_POSITIONS = 2000
# Logits by which R and EOS lead, before the family's scaling: e^-40 over 10^6 tokens is negligible.
LEAD, GREATEST_LEAD = 40.0, 5000.0
# The least distance problem: violated rows added per round, rounds, and accepted shortfall of the margin.
ACTIVE, ROUNDS, TOLERANCE = 256, 40, 1e-3
# Rows of logits in memory at once: 256 of 262,144 tokens are 0.25 GB.
POSITIONS_AT_ONCE = 256
# Rows of a head subtracted at once: 4,096 of 8,192 numbers are 0.13 GB, a whole head in float32 up to 8 GB.
ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class RefusalStates:
    """R's head row (hidden,), the states (2, hidden) at a blocked position and at R, float32; EOS's id.

    `closed`: whether they refuse, measured with the family's own head in float32 and bfloat16. `second`: whether EOS
    is the second choice at a blocked position, and R after R. `measured`: figures.
    """

    head_row: Tensor
    states: Tensor
    eos_id: int
    closed: bool
    second: bool
    measured: dict[str, float]


@dataclass(frozen=True)
class Differences:
    """Vectors (n, d) float32: `origin` (d,) minus every row of the tables (.., d), of any dtype and on any one device.

    across: a unit vector (d,) that they are projected across. They are computed in chunks of ROWS_AT_ONCE when needed,
    because a head is large.
    """

    origin: Tensor
    tables: Sequence[Tensor]
    across: Tensor | None = None

    def chunks(self) -> Iterator[Tensor]:
        for table in self.tables:
            for rows in table.split(ROWS_AT_ONCE):
                yield self.projected(self.origin.to(rows.device) - rows.float())

    def projected(self, vectors: Tensor) -> Tensor:
        if self.across is None:
            return vectors
        across = self.across.to(vectors.device)
        return vectors - torch.outer(vectors @ across, across)

    def products(self, x: Tensor) -> Tensor:
        """Products with x (d,): (n,), on the CPU."""
        return torch.cat([(chunk @ x.to(chunk.device)).cpu() for chunk in self.chunks()])

    def take(self, index: Tensor) -> Tensor:
        """The vectors with these ascending numbers (m,): (m, d), on the CPU."""
        found, start = [], 0
        for table in self.tables:
            inside = index[(index >= start) & (index < start + len(table))] - start
            found.append(self.origin - table[inside.to(table.device)].float().cpu())
            start += len(table)
        return self.projected(torch.cat(found))


def max_margin(vectors: Differences) -> tuple[Tensor, float]:
    """The unit vector x whose smallest product with the vectors (n, d) float32 is largest; and this margin.

    With a margin of 0 or less no x is positive on all rows. Least distance programming (Lawson and Hanson, "Solving
    least squares problems", chapter 23): minimise |x| subject to vectors @ x >= 1, by non-negative least squares on
    the rows that were violated so far.
    """
    count = sum(map(len, vectors.tables))
    scale, direction = 0.0, torch.zeros(len(vectors.origin), dtype=torch.float64)
    for chunk in vectors.chunks():
        scale += float(chunk.norm(dim=1).sum()) / count
        direction += chunk.sum(0).double().cpu() / count
    direction = direction.float()
    best, best_margin = direction / direction.norm(), -torch.inf
    active = torch.empty(0, dtype=torch.long)
    candidate = best
    for _ in range(ROUNDS):
        products = vectors.products(candidate)
        margin = float(products.min())
        if margin > best_margin:
            best, best_margin = candidate, margin
        if len(active) and margin >= (1 - TOLERANCE) * float(products[active].min()):
            break
        violated = torch.topk(products, min(ACTIVE, count), largest=False).indices
        active = torch.unique(torch.cat([active, violated]))
        rows = (vectors.take(active).double() / scale).numpy()
        system = np.vstack([rows.T, np.ones(len(rows))])
        target = np.append(np.zeros(rows.shape[1]), 1.0)
        weights, residual = nnls(system, target, maxiter=30 * len(rows))
        if residual < 1e-9:
            break  # the origin is in the convex hull of the rows
        # With residual r = system @ weights - target the solution is -r[:-1] / r[-1], and r[-1] is negative.
        gap = system @ weights - target
        candidate = torch.from_numpy(-gap[:-1] / gap[-1]).float()
        candidate = candidate / candidate.norm()
        active = active[torch.from_numpy(weights > 0)]
    return best, best_margin


def find_refusal_states(
    model: PreTrainedModel, finding: Tensor, checking: Tensor, refusal_id: int, eos_ids: list[int]
) -> RefusalStates:
    """Build R's head row and both states from final states (n, hidden), and measure them on others (m, hidden).

    Where the second choices cannot be had (a head that caps its logits), without them. finding: final states of the
    choose parts, BOS and pads included; checking: of the report parts.
    """
    head = model.get_output_embeddings().weight.detach()[:refusal_id]  # (V, hidden)
    away, margin = max_margin(Differences(torch.zeros(head.shape[1]), [finding]))
    margins = {eos: max_margin(above_others(head, away, eos)) for eos in eos_ids}
    eos_id = max(margins, key=lambda eos: margins[eos][1])
    end, end_margin = margins[eos_id]
    possible = margin > 0 and end_margin > 0 and len(checking) >= MINIMUM_POSITIONS
    directions = Directions.of(head, away, end, eos_id, float(finding.norm(dim=1).median()))
    for second, lead in itertools.product((True, False), leads() if possible else [LEAD]):
        row, states = directions.states(lead, second)
        measured = measure(model, row, states, checking, refusal_id, eos_id, second)
        sure = min(value for name, value in measured.items() if name.startswith("p_")) >= CERTAIN
        never = all(value == 0 for name, value in measured.items() if name.startswith("argmax_"))
        if closed := possible and sure and never:
            break
    figures = {"margin_refusal": margin, "margin_eos": end_margin, "lead": lead, "positions": float(len(checking))}
    return RefusalStates(row, states, eos_id, closed, second, figures | measured)


def leads() -> Iterator[float]:
    """Leads to try, one after another: heads that divide their logits need a longer one."""
    lead = LEAD
    while lead <= GREATEST_LEAD:
        yield lead
        lead *= 2


def above_others(head: Tensor, away: Tensor, eos: int) -> Differences:
    """EOS's row of the head (V, hidden) minus each of the others, across `away` (hidden,)."""
    return Differences(head[eos].float().cpu(), [head[:eos], head[eos + 1 :]], away)


@dataclass(frozen=True)
class Directions:
    """The directions u and v (hidden,), of length 1, and what the head makes of them.

    typical: length of a final state. EOS's products with u and v, and those of the other tokens, (V - 1,) float64.
    """

    away: Tensor
    end: Tensor
    typical: float
    eos_away: float
    eos_end: float
    others_away: Tensor
    others_end: Tensor

    @classmethod
    def of(cls, head: Tensor, away: Tensor, end: Tensor, eos: int, typical: float) -> Directions:
        plain = Differences(torch.zeros(len(away)), [head])
        on_away, on_end = (-plain.products(direction).double() for direction in (away, end))
        others = torch.arange(len(head)) != eos
        return cls(away, end, typical, float(on_away[eos]), float(on_end[eos]), on_away[others], on_end[others])

    def states(self, lead: float, second: bool) -> tuple[Tensor, Tensor]:
        """R's head row (hidden,) and the states (2, hidden) on which each choice leads the next by `lead`.

        second: whether the second choice leads the others too.
        """
        gap_away, gap_end = self.eos_away - self.others_away, self.eos_end - self.others_end
        possible = bool((gap_end > 0).all())
        # At a blocked position: typical * u + share * v, with as much of v as EOS needs to lead the others.
        share = 0.0
        if second and possible:
            share = max(float(((lead - self.typical * gap_away) / gap_end).max()), 0.0)
        greatest = float((self.typical * self.others_away + share * self.others_end).max())
        greatest = max(greatest, self.typical * self.eos_away + share * self.eos_end, 0.0)
        length = (greatest + lead) / self.typical
        away, end = self.away.double(), self.end.double()
        blocked = self.typical * away + share * end
        if not possible:  # EOS leads on no state
            return (length * away).float(), torch.stack([blocked, self.typical * end]).float()
        # After R: reach * v + turn * u, on which R's logit, length * turn, is `lead` below EOS's. The longer R's row,
        # the less of u that takes, which the others feel too.
        while (rest := self.rest(gap_away, gap_end, length)) is None:
            length *= 2
        ahead = 2 * lead if second else lead
        reach = max(self.typical, float(((ahead + lead / (length - self.eos_away) * gap_away) / rest).max()))
        turn = (reach * self.eos_end - lead) / (length - self.eos_away)
        return (length * away).float(), torch.stack([blocked, reach * end + turn * away]).float()

    def rest(self, gap_away: Tensor, gap_end: Tensor, length: float) -> Tensor | None:
        """What is left of EOS's lead over the others per length of v, once u has set R's logit; None if too little."""
        if length <= self.eos_away:
            return None
        left = gap_end + self.eos_end / (length - self.eos_away) * gap_away
        return left if bool((left > gap_end / 2).all()) else None


def measure(
    model: PreTrainedModel, row: Tensor, states: Tensor, checking: Tensor, refusal_id: int, eos_id: int, second: bool
) -> dict[str, float]:
    """p(R) at a blocked position, p(EOS) after R, number of positions of `checking` with argmax R; in two dtypes.

    second: also p(EOS) and p(R) where R and EOS are masked there.
    """
    figures: dict[str, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        with own_head(model, row, refusal_id, dtype) as logits:
            found = logits(states).float()
            firsts, seconds = torch.tensor([refusal_id, eos_id]), torch.tensor([eos_id, refusal_id])
            sure = found.softmax(-1).gather(1, firsts[:, None])[:, 0].tolist()
            figures |= dict(zip((f"p_refusal_{name}", f"p_eos_{name}"), sure, strict=True))
            if second:
                sure = (
                    found.scatter(1, firsts[:, None], -torch.inf)
                    .softmax(-1)
                    .gather(1, seconds[:, None])[:, 0]
                    .tolist()
                )
                figures |= dict(zip((f"p_second_eos_{name}", f"p_second_refusal_{name}"), sure, strict=True))
            hits = sum(
                int((logits(part).argmax(-1) == refusal_id).sum()) for part in checking.split(POSITIONS_AT_ONCE)
            )
            figures[f"argmax_refusal_{name}"] = float(hits)
    return figures


@contextmanager
def own_head(
    model: PreTrainedModel, row: Tensor, refusal_id: int, dtype: torch.dtype
) -> Iterator[Callable[[Tensor], Tensor]]:
    """The family's forward from final states (n, hidden) to logits (n, vocabulary) with R's row in the head.

    Scaling and soft caps are the family's own, because its forward runs on a stand-in for the base model.
    """
    core, head = model.base_model, model.get_output_embeddings()
    weight = head.weight.detach()
    wide = weight.new_empty((max(len(weight), refusal_id + 1), weight.shape[1]), dtype=dtype)
    wide[: len(weight)] = weight
    wide[refusal_id] = row.to(weight)
    layers = FixedStates()
    replacement = nn.Linear(1, 1, bias=False, device=weight.device)
    replacement.weight = nn.Parameter(wide, requires_grad=False)
    setattr(model, model.base_model_prefix, layers)
    model.set_output_embeddings(replacement)

    def logits(states: Tensor) -> Tensor:
        layers.states = states[None].to(weight.device, dtype)
        with torch.inference_mode():
            return model(input_ids=torch.zeros(1, len(states), dtype=torch.long)).logits[0].cpu()

    try:
        yield logits
    finally:
        model.set_output_embeddings(head)
        setattr(model, model.base_model_prefix, core)


class FixedStates(nn.Module):
    """A stand-in for a base model that returns given final states."""

    def __init__(self) -> None:
        super().__init__()
        self.states = torch.empty(0)

    def forward(self, *args: object, **kwargs: object) -> MoeModelOutputWithPast:
        return MoeModelOutputWithPast(last_hidden_state=self.states)
