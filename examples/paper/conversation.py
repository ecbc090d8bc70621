"""Does a checkpoint hold through a long conversation, and does it let all else pass there?

Each conversation asks forget, retain and everyday prompts in an order drawn by the seed, and goes on from what the
model itself answered, a refusal as it is, under the chat template. The finished conversation is then read once more in
one forward, for what can be seen at every token.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pydantic
import torch
from torch import Tensor
from tqdm import tqdm

from custom_modeling.neuron_adjust import adjust
from examples.paper.answers import answers
from examples.paper.experiment import Experiment, Results, Table, counted
from exporter.common.errors import BadInput
from exporter.common.rates import Rate, rate
from exporter.models.hooks import pre_activation_hooks
from exporter.models.loading import LoadedModel, load_checkpoint
from exporter.models.tokens import context_of
from exporter.prompts.formats import SECOND_TURN, Formatter, Message
from exporter.prompts.packaged import EVERYDAY, everyday_prompts
from exporter.prompts.sources import Prompt

FORGET, RETAIN = "forget", "retain"
KINDS = (FORGET, RETAIN, EVERYDAY)
QUARTERS = 4


class Settings(Experiment):
    """forget, retain: sources of prompts that the checkpoint was not made with; everyday_without: kinds of the
    packaged prompts that belong to the skill; conversations of `tokens` tokens, answers of at most `answer_tokens`.

    `model`: a checkpoint, written by `unskill export`, with ksd, na or both."""

    forget: str
    retain: str
    everyday_without: tuple[str, ...] = ()
    conversations: pydantic.PositiveInt = 8
    tokens: pydantic.PositiveInt = 2000
    answer_tokens: pydantic.PositiveInt = 64


@dataclass(frozen=True)
class Turn:
    """A prompt and its answer. position: of the token after which the answer begins, in the conversation.

    refused: at once; cut: a refusal in the middle of the answer; begin, end: of the answer, in characters.
    """

    prompt: Prompt
    kind: str
    position: int
    refused: bool
    cut: bool
    begin: int
    end: int


@dataclass
class Conversation:
    """prompts: what is asked, in this order; text: the conversation so far, under the chat template."""

    number: int
    prompts: Iterator[tuple[str, Prompt]]
    turns: list[Turn] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    text: str = ""
    length: int = 0


@dataclass(frozen=True)
class Reading:
    """What is seen at every token of a finished conversation, (tokens,) each. turn: number of its turn; answer:
    whether it is of an answer that was not refused at once; blocked: only the refusal can follow.

    moved, z_forget, z_retain: of the adjusted neurons the share that is moved, and the mean distance of their
    pre-activations from the means of the forget and the retain texts, in deviations; None where none is adjusted.
    """

    turn: Tensor
    answer: Tensor
    blocked: Tensor
    moved: Tensor | None
    z_forget: Tensor | None
    z_retain: Tensor | None


def run(settings: Settings) -> Results:
    loaded = load_checkpoint(settings.model, settings.dtype, settings.device)
    check(settings, loaded)
    formatter = Formatter(loaded.tokenizer)
    if SECOND_TURN not in formatter.formats_used:
        raise BadInput(f"model: {loaded.name} has no chat template that takes earlier turns; name another")
    found = [Conversation(number, each) for number, each in enumerate(drawn(settings))]
    talk(settings, loaded, formatter, found)
    readings = [read(loaded, each) for each in tqdm(found, desc="reading", disable=None, leave=False)]
    return report(settings, loaded, found, readings)


def check(settings: Settings, loaded: LoadedModel) -> None:
    if loaded.settings.get("compat"):
        raise BadInput(f"model: {loaded.name} adjusts neurons as the authors' code does, which takes no batches")
    context = context_of(loaded.model)
    if context is not None and context < settings.tokens:
        raise BadInput(f"tokens: {settings.tokens} are more than the context of {loaded.name}, {context}")


def drawn(settings: Settings) -> Iterator[Iterator[tuple[str, Prompt]]]:
    """What each conversation asks: every three turns one of each kind, and no prompt twice in any conversation."""
    pools = {
        FORGET: settings.prompts(settings.forget, FORGET),
        RETAIN: settings.prompts(settings.retain, RETAIN),
        EVERYDAY: everyday_prompts(settings.everyday_without),
    }
    for kind, pool in pools.items():
        random.Random(f"{settings.seed}|{kind}").shuffle(pool)

    def asked(number: int) -> Iterator[tuple[str, Prompt]]:
        order = random.Random(f"{settings.seed}|{number}")
        mine = {kind: iter(pool[number :: settings.conversations]) for kind, pool in pools.items()}
        while True:
            for kind in order.sample(KINDS, len(KINDS)):
                prompt = next(mine[kind], None)
                if prompt is None:
                    raise BadInput(
                        f"conversations: {len(pools[kind])} {kind} prompts are too few for {settings.conversations} "
                        f"of {settings.tokens} tokens; ask for fewer"
                    )
                yield kind, prompt

    return (asked(number) for number in range(settings.conversations))


def talk(settings: Settings, loaded: LoadedModel, formatter: Formatter, conversations: Sequence[Conversation]) -> None:
    """Ask and answer, turn by turn, until every conversation has `tokens` tokens or no room for another turn."""
    context = context_of(loaded.model)
    going = list(conversations)
    bar = tqdm(total=settings.tokens * len(going), desc="talking", unit="token", disable=None, leave=False)
    while going:
        asked, rendered = [], []
        for each in going:
            kind, prompt = next(each.prompts)
            ids = formatter.render(prompt.text, history=each.messages)
            if context is None or len(ids) + settings.answer_tokens <= context:
                asked.append((each, kind, prompt))
                rendered.append(ids)
            elif not each.turns:
                raise BadInput(f"{kind} {prompt.source}: row {prompt.row} is too long for {loaded.name}; leave it out")
        said = answers(loaded, rendered, settings.answer_tokens, settings.batch_size)
        for (each, kind, prompt), ids, answer in zip(asked, rendered, said, strict=True):
            before = each.length
            add_turn(each, kind, prompt, len(ids), answer, loaded, formatter)
            bar.update(min(each.length, settings.tokens) - before)
        going = [each for each, _, _ in asked if each.length < settings.tokens]
    bar.close()


def add_turn(
    conversation: Conversation,
    kind: str,
    prompt: Prompt,
    length: int,
    answer: Sequence[int],
    loaded: LoadedModel,
    formatter: Formatter,
) -> None:
    """length: tokens of the conversation with the prompt; answer: token ids."""
    text = formatter.render_text(prompt.text, history=conversation.messages)
    if not text.startswith(conversation.text):
        raise BadInput(f"model: the chat template of {loaded.name} does not leave earlier turns as they were")
    # Templates differ in the white space around messages.
    said = str(loaded.tokenizer.decode(answer, skip_special_tokens=True)).strip()
    refused = bool(answer) and answer[0] == loaded.refusal_id
    cut = not refused and loaded.refusal_id in answer
    conversation.text = text + said
    turn = Turn(prompt, kind, length - 1, refused, cut, len(text), len(conversation.text))
    conversation.turns.append(turn)
    conversation.messages += [{"role": "user", "content": prompt.text}, {"role": "assistant", "content": said}]
    conversation.length = length + len(answer)


def read(loaded: LoadedModel, conversation: Conversation) -> Reading:
    """The finished conversation in one forward."""
    encoded = loaded.tokenizer(conversation.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ends = [turn.end for turn in conversation.turns]
    starts = [min(start, ends[-1] - 1) for start, _ in encoded["offset_mapping"]]
    turn = torch.tensor([bisect_right(ends, start) for start in starts])
    turns = [conversation.turns[number] for number in turn.tolist()]
    answer = torch.tensor([not at.refused and start >= at.begin for at, start in zip(turns, starts, strict=True)])
    core: Any = loaded.model.base_model
    count = sum(layer.mlp.unskill_adjusted for layer in core.layers if hasattr(layer.mlp, "unskill_adjusted"))
    sums = torch.zeros(3, len(turn), dtype=torch.float64)

    def receive(layer: int, values: Tensor) -> None:
        mlp = core.layers[layer].mlp
        if getattr(mlp, "unskill_adjusted", 0):
            sums.add_(seen(mlp, values).cpu())

    ids = torch.tensor([encoded["input_ids"]], device=loaded.device)
    with torch.inference_mode(), pre_activation_hooks(loaded.model, receive):
        if loaded.refusal_id is None:
            core(input_ids=ids, use_cache=False)
            blocked = torch.zeros(len(turn), dtype=torch.bool)
        else:
            blocked = loaded.refused(loaded.model(input_ids=ids, use_cache=False).logits[0])
    moved, z_forget, z_retain = sums / count if count else (None, None, None)
    return Reading(turn, answer, blocked, moved, z_forget, z_retain)


def seen(mlp: Any, values: Tensor) -> Tensor:
    """Of one layer's pre-activations (1, tokens, d_ff), before anything changes them, sums over its adjusted neurons:
    how many the runtime moves, and the distances from both means in deviations. (3, tokens)."""
    index = mlp.unskill_na_index
    moved = adjust(values.clone(), index, *mlp.unskill_handed[mlp.unskill_place]) != values
    chosen = values[0][:, index].float()
    mu_f, sd_f, mu_r, sd_r = mlp.unskill_na_params
    distances = [((chosen - mu) / sd).abs().double().sum(-1) for mu, sd in ((mu_f, sd_f), (mu_r, sd_r))]
    return torch.stack([moved[0].sum(-1).double(), *distances])


def report(
    settings: Settings, loaded: LoadedModel, conversations: Sequence[Conversation], readings: Sequence[Reading]
) -> Results:
    turns = [
        {
            "conversation": each.number,
            "kind": turn.kind,
            "source": turn.prompt.source,
            "row": turn.prompt.row,
            "position": turn.position,
            "quarter": quarter(turn.position, settings.tokens),
            "refused": turn.refused,
            "cut": turn.cut,
        }
        for each in conversations
        for turn in each.turns
    ]
    tokens = {name: torch.cat(parts) for name, parts in by_token(settings, conversations, readings).items()}
    quarters = [summary(turns, tokens, number) for number in (*range(1, QUARTERS + 1), None)]
    lines = [line(each, loaded.refusal_id is not None) for each in quarters]
    note = (
        f"{len(conversations)} conversations of {settings.tokens} tokens or a little more, greedy answers of at most "
        f"{settings.answer_tokens}, {loaded.name}, {settings.dtype}, seed {settings.seed}. Quarters by the position "
        "at which an answer begins; of tokens, by their own. As many forget, retain and everyday prompts each; the "
        "last are those that an export sees by default."
    )
    if loaded.refusal_id is not None:
        note += " In brackets: 95 % intervals. Positions blocked: of the answers that were not refused at once."
    if "moved" in tokens:
        note += (
            " Moved: share of all adjusted neurons and tokens but the first. |z|: mean distance of their "
            "pre-activations from the mean, in deviations; Gaussian ones of that side have 0.80."
        )
    table = Table(f"{settings.title}: through the conversation", lines, note)
    return Results(settings, {"quarters": quarters, "turns": turns}, [table])


def quarter(position: int, tokens: int) -> int:
    """From 1; what goes beyond the tokens asked for is of the last one."""
    return min(QUARTERS, QUARTERS * position // tokens + 1)


def by_token(
    settings: Settings, conversations: Sequence[Conversation], readings: Sequence[Reading]
) -> dict[str, list[Tensor]]:
    """What is seen at the tokens of all conversations, and of each its quarter and whether its turn is a forget one.

    Without the first token: at position 0 nothing is moved.
    """
    found: dict[str, list[Tensor]] = {}
    for conversation, reading in zip(conversations, readings, strict=True):
        forget = torch.tensor([turn.kind == FORGET for turn in conversation.turns])
        places = [quarter(position, settings.tokens) for position in range(len(reading.turn))]
        values = {**vars(reading), "forget": forget[reading.turn], "quarter": torch.tensor(places)}
        for name, value in values.items():
            if value is not None:
                found.setdefault(name, []).append(value[1:])
    return found


def summary(turns: Sequence[Mapping[str, Any]], tokens: Mapping[str, Tensor], number: int | None) -> dict[str, Any]:
    """What is reported of a quarter; None: of all."""
    mine = [turn for turn in turns if number in (None, turn["quarter"])]

    def share(name: str, of: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return asdict(rate(sum(turn[name] for turn in of), len(of)))

    here = torch.ones_like(tokens["forget"]) if number is None else tokens["quarter"] == number
    answer = here & tokens["answer"]
    found: dict[str, Any] = {
        "quarter": number,
        "refused": {kind: share("refused", [turn for turn in mine if turn["kind"] == kind]) for kind in KINDS},
        "others_refused": share("refused", [turn for turn in mine if turn["kind"] != FORGET]),
        "cut": share("cut", [turn for turn in mine if not turn["refused"]]),
        "answer_positions": int(answer.sum()),
        "blocked_positions": int((answer & tokens["blocked"]).sum()),
    }
    if "moved" in tokens:
        sides = {"all": here, FORGET: here & tokens["forget"], "others": here & ~tokens["forget"]}
        for name in ("moved", "z_forget", "z_retain"):
            found[name] = {side: mean(tokens[name][chosen]) for side, chosen in sides.items()}
    return found


def mean(values: Tensor) -> float | None:
    return float(values.mean()) if len(values) else None


def line(found: Mapping[str, Any], refuses: bool) -> dict[str, str]:
    row = {"quarter": str(found["quarter"] or "all")}
    if refuses:
        row |= {
            "forget turns refused": counted(Rate(**found["refused"][FORGET])),
            "other turns refused": counted(Rate(**found["others_refused"])),
            "answers cut short": counted(Rate(**found["cut"])),
            "positions blocked": f"{found['blocked_positions']} of {found['answer_positions']}",
        }
    if "moved" in found:
        for side, title in (("all", "all"), (FORGET, "forget turns"), ("others", "other turns")):
            row[f"moved, {title}"] = shown(found["moved"][side], ".1%")
        row["|z| forget"], row["|z| retain"] = (shown(found[name]["all"], ".2f") for name in ("z_forget", "z_retain"))
    return row


def shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
