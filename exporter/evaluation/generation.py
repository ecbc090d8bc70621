"""Tasks for which a model writes an answer, greedily: sums (GSM8K), programs (MBPP, HumanEval), questions on texts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from exporter.evaluation import sandbox
from exporter.evaluation.items import Item
from exporter.evaluation.metrics import code_of, exact_match, f1, last_number
from exporter.evaluation.records import Result
from exporter.evaluation.tasks import Task
from exporter.models.batches import ANSWER_TOKENS
from exporter.models.loading import LoadedModel
from exporter.models.tokens import context_of
from exporter.prompts.formats import Formatter


class Generation(Task):
    """Items whose prompt is answered under the model's chat template, or under the given one."""

    tokens: ClassVar[int] = ANSWER_TOKENS

    items: Sequence[Item]

    def __init__(self, label: str, items: Sequence[Item], formatter: Formatter, found: int) -> None:
        self.label, self.found, self.items = label, found, items
        self.ids = [formatter.render(self.prompt(item)) for item in items]

    @abstractmethod
    def prompt(self, item: Item) -> str:
        """What the model is asked, before any chat template."""

    @abstractmethod
    def judge(self, item: Item, answer: str) -> Result:
        """What the metric says of an answer: "correct" and what goes with it."""

    def run(self, loaded: LoadedModel, rows: Sequence[int]) -> list[Result]:
        inputs = loaded.pad([self.ids[row] for row in rows], "left")
        length, context = inputs["input_ids"].shape[1], context_of(loaded.model)
        room = self.new_tokens if context is None else context - length
        greedy = loaded.greedy(min(self.new_tokens, room))
        with torch.inference_mode():
            output = loaded.model.generate(**inputs, generation_config=greedy)
        found = []
        for row, ids in zip(rows, output[:, length:].tolist(), strict=True):
            end = next((place for place, token in enumerate(ids) if token in greedy.eos_token_id), len(ids))
            answer = loaded.tokenizer.decode(ids[:end], skip_special_tokens=True)
            refused = loaded.refusal_id is not None and ids[0] == loaded.refusal_id
            result = {"correct": False, "refused": refused, "tokens": end, "answer": answer}
            # EOS follows a refusal in the middle of an answer: what was written before it is judged.
            found.append(result if refused else result | self.judge(self.items[row], answer))
        return found


class Sums(Generation):
    """GSM8K: the last number of the answer against that of the reference."""

    kind = "gsm8k"
    new_tokens: ClassVar[int] = 256

    def prompt(self, item: Item) -> str:
        return str(item.fields["question"])

    def judge(self, item: Item, answer: str) -> Result:
        said = last_number(answer)
        return {"correct": said is not None and said == last_number(item.fields["answer"]), "said": said}


class Questions(Generation):
    """Questions on a passage (SQuAD, XQuAD): exact match and F1."""

    kind = "qa"
    new_tokens: ClassVar[int] = 32

    def prompt(self, item: Item) -> str:
        return (
            "Answer the question with a phrase of the text, and nothing else.\n\n"
            f"Text: {item.fields['context']}\n\nQuestion: {item.fields['question']}\n\nAnswer:"
        )

    def judge(self, item: Item, answer: str) -> Result:
        first = answer.strip().split("\n")[0]
        references = references_of(item.fields.get("answers", item.fields.get("answer")))
        return {"correct": exact_match(first, references), "f1": f1(first, references)}


def references_of(answers: Any) -> list[str]:
    """Reference answers in any of their forms: one text, a list of texts or of {"text": ...}, or {"text": [...]}."""
    if isinstance(answers, str):
        return [answers]
    if isinstance(answers, dict):
        return [str(text) for text in answers["text"]]
    return [str(each["text"] if isinstance(each, dict) else each) for each in answers]


class Programs(Generation):
    """MBPP and HumanEval: pass@1, whether the one program that is written passes all tests, in the sandbox."""

    kind = "code"
    new_tokens: ClassVar[int] = 384

    def prompt(self, item: Item) -> str:
        fields = item.fields
        if "test_list" in fields:
            tests = "\n".join(fields["test_list"])
            return f"{fields['text'].strip()}\nWrite it in Python. Your code should pass these tests:\n\n{tests}"
        return f"Complete this Python function. Answer with the whole function.\n\n```python\n{fields['prompt']}```"

    def judge(self, item: Item, answer: str) -> Result:
        outcome = sandbox.run(program_of(item, code_of(answer)))
        return {"correct": outcome.passed, "outcome": outcome.reason}


def program_of(item: Item, code: str) -> str:
    """The code and the tests that it has to pass, as one program."""
    fields = item.fields
    if "test_list" in fields:
        # The set-up may use what the code defines (MBPP 367), as the tests do.
        return "\n".join([code, fields.get("test_setup_code") or "", *fields["test_list"]])
    # A model may continue the given lines or write the whole function again; what stands before the function (imports,
    # other functions) is needed in both cases.
    head = f"def {fields['entry_point']}("
    given = fields["prompt"]
    code = given[: given.rindex(head)] + code if head in code and head in given else given + code
    return f"{code}\n\n{fields['test']}\n\ncheck({fields['entry_point']})\n"
