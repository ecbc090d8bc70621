"""What each model is told of the turns before, how long answers are, and what is written when."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from exporter.cli.chat.answers import INTERRUPTED, LENGTH, Pieces, Sampling, answer
from exporter.cli.chat.conversation import Conversation, Turn
from exporter.common.errors import BadInput, RunFailed
from exporter.models.loading import LoadedModel, load_checkpoint
from tests.exporter.cli.chat.conftest import base_side_of, side_of
from tests.tiny import FORGET, one_thread

SHORT = Sampling(8, 0.0, 0)


def ask(conversation: Conversation, *prompts: str) -> list[Turn]:
    with one_thread():
        return [conversation.ask(prompt, lambda role, piece: None) for prompt in prompts]


def test_each_side_keeps_its_own_answers(edited: LoadedModel) -> None:
    sides = [side_of(edited), base_side_of(edited)]
    conversation = Conversation(sides, SHORT, keep=True)
    first, second = ask(conversation, FORGET[0], "and then?")
    assert first.base is not None and second.base is not None
    for side, said in zip(sides, ((first.edited, second.edited), (first.base, second.base)), strict=True):
        assert [message["content"] for message in side.messages] == [
            FORGET[0],
            said[0].text,
            "and then?",
            said[1].text,
        ]
        history = [{"role": "user", "content": FORGET[0]}, {"role": "assistant", "content": said[0].text}]
        ids = side.formatter.render("and then?", history=history)
        with one_thread():
            alone = answer(side.loaded, ids, SHORT, lambda piece: None)
        assert alone.text == said[1].text
    assert first.same is False and first.edited.text == "Your query is not valid"


def test_alone_each_prompt_is_as_the_first(edited: LoadedModel) -> None:
    conversation = Conversation([side_of(edited)], SHORT, keep=False)
    found = ask(conversation, "hello", "what?", "hello")
    assert found[0].edited.text == found[2].edited.text and conversation.sides[0].messages == []


def test_reset_forgets_and_keeps_the_system_prompt(edited: LoadedModel) -> None:
    conversation = Conversation([side_of(edited)], SHORT, keep=True)
    conversation.system = "Be brief."
    (fresh,) = ask(conversation, "hello")
    (later,) = ask(conversation, "hello")
    conversation.reset()
    (again,) = ask(conversation, "hello")
    assert fresh.edited.text == again.edited.text != later.edited.text and conversation.system == "Be brief."
    conversation.reset()
    conversation.system = None
    assert ask(conversation, "hello")[0].edited.text != fresh.edited.text


def test_without_a_chat_template_nothing_is_remembered(edited: LoadedModel) -> None:
    conversation = Conversation([side_of(edited, prompt_template="Q: {prompt}\nA:")], SHORT, keep=True)
    assert not conversation.remembers
    ask(conversation, "hello")
    assert conversation.sides[0].messages == []
    with pytest.raises(BadInput, match="--system"):
        conversation.system = "Be brief."


def test_the_base_is_answered_as_without_interventions(edited: LoadedModel) -> None:
    """Greedily, what the checkpoint answers and neurons do not change is the same on both sides: the class decides."""
    side = base_side_of(edited)
    ids = side.formatter.render(FORGET[0])
    with one_thread():
        said = answer(side.loaded, ids, SHORT, lambda piece: None)
    assert said.text != "Your query is not valid" and said.verdicts == () and said.moved is None


def test_sampling_is_by_the_seed_and_the_turn(edited: LoadedModel) -> None:
    def texts(seed: int) -> list[str]:
        conversation = Conversation([side_of(edited)], Sampling(20, 1.5, seed), keep=False)
        return [turn.edited.text for turn in ask(conversation, "hello", "hello")]

    assert texts(1) == texts(1) != texts(2)
    assert texts(1)[0] != texts(1)[1] == texts(2)[0]  # the second turn of seed 1 is the first of seed 2


def test_hot_sampling_is_still_refused(edited: LoadedModel) -> None:
    conversation = Conversation([side_of(edited)], Sampling(20, 100.0, 0), keep=False)
    # As hot as that the end, the second choice, may be drawn instead of the refusal.
    assert all(turn.edited.text in ("Your query is not valid", "") for turn in ask(conversation, *FORGET[:20]))
    conversation = Conversation([side_of(edited)], Sampling(20, 5.0, 0), keep=False)
    assert all(turn.edited.text == "Your query is not valid" for turn in ask(conversation, *FORGET[:20]))


def test_a_prompt_beyond_the_context_leaves_the_conversation_as_it_was(edited: LoadedModel) -> None:
    conversation = Conversation([side_of(edited)], SHORT, keep=True)
    ask(conversation, "hello")
    before = list(conversation.sides[0].messages)
    with pytest.raises(BadInput, match="a context of 2048"):
        ask(conversation, "x" * 3000)
    assert conversation.sides[0].messages == before
    ids = side_of(edited).formatter.render("")
    room = 2048 - len(ids)
    (last,) = ask(Conversation([side_of(edited)], SHORT, keep=False), "~" * (room - 3))
    assert last.edited.ended == LENGTH and last.edited.tokens == 3


def test_ctrl_c_keeps_what_was_written(edited: LoadedModel) -> None:
    pieces: list[str] = []

    def write(role: str, piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 5:
            raise KeyboardInterrupt

    conversation = Conversation([side_of(edited)], Sampling(200, 0.0, 0), keep=True, stoppable=True)
    with one_thread():
        turn = conversation.ask("hello", write)
    assert turn.edited.ended == INTERRUPTED and turn.edited.text.startswith("".join(pieces[:-1]))
    assert conversation.sides[0].messages[-1] == {"role": "assistant", "content": turn.edited.text}
    (whole,) = ask(Conversation([side_of(edited)], SHORT, keep=False), "hello")
    assert whole.edited.tokens == 8, "the model answers again"
    pieces.clear()
    with pytest.raises(KeyboardInterrupt), one_thread():
        Conversation([side_of(edited)], SHORT, keep=True).ask("hello", write)


def test_pieces_make_up_the_answer(edited: LoadedModel) -> None:
    """Characters of several tokens come whole, and nothing comes twice."""
    for prompt in ("hello", "Tell me about Tom", "1 2 3"):
        pieces: list[str] = []
        with one_thread():
            turn = Conversation([side_of(edited)], Sampling(60, 0.0, 0), keep=False).ask(
                prompt, lambda role, piece, pieces=pieces: pieces.append(piece)
            )
        assert "".join(pieces) == turn.edited.text and len(pieces) > 5
    text, written = "a 漢🙂\n    indented", []
    streamer = Pieces(edited.tokenizer, written.append)
    streamer.put(torch.tensor([[1, 2, 3]]))
    for token in edited.tokenizer(text)["input_ids"]:
        streamer.put(torch.tensor([token]))
    streamer.end()
    assert "".join(written) == text and "漢" in written and "🙂" in written


def test_out_of_memory_is_one_line(edited: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(edited.model, "generate", fail)
    with pytest.raises(RunFailed, match="out of memory"):
        ask(Conversation([side_of(edited)], SHORT, keep=False), "hello")


def test_sampling_options_of_the_model_do_not_warn(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "sampled")
    path = copy / "generation_config.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(found | {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20}))
    loaded = load_checkpoint(str(copy), "auto", "cpu")
    import transformers

    transformers.utils.logging.enable_propagation()
    try:
        (turn,) = ask(Conversation([side_of(loaded)], SHORT, keep=False), "hello")
    finally:
        transformers.utils.logging.disable_propagation()
    assert "generation flags" not in caplog.text and turn.edited.tokens == 8
