"""Switches of a chat template, such as `enable_thinking`: arguments that change what follows the last user message.

Where thinking is off, many templates begin the answer with an empty block. The position that decides is then another
one: fitted without it, 0 of 60 prompts are refused in that mode.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from exporter.common.errors import BadInput

MOST_STATES = 4
"""States of a template beside its own default that prompts are formatted in."""
MARK = "Zaunkoenig"
GIVEN = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "raise_exception"}
    | {"strftime_now", "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"}
)
"""Names that transformers fills in itself."""

TEMPLATE_ERRORS = (
    *(jinja2.TemplateError, TypeError, ValueError),
    *(ArithmeticError, LookupError, AttributeError, RecursionError),
)
"""What a chat template can raise: it is a program that came with the model."""


def not_json(name: str) -> None:
    """For NaN and Infinity, which Python reads and JSON does not have."""
    raise ValueError(name)


@dataclass(frozen=True)
class State:
    """Arguments of a chat template. text: as a JSON object, which is what the format is called too."""

    text: str

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> State:
        return cls(json.dumps(dict(arguments), ensure_ascii=False))

    @classmethod
    def given(cls, text: str) -> State:
        """The state that a user gives as JSON. Raises BadInput where it is no JSON object with arguments."""
        try:
            found = json.loads(text, parse_constant=not_json)
        except ValueError as error:
            raise BadInput(
                f"--template-args: '{text}' is not JSON; give the like of '{{\"thinking\": true}}'"
            ) from error
        if not isinstance(found, dict) or not found:
            raise BadInput(f"--template-args: '{text}' is no JSON object that names an argument")
        return cls.of(found)

    @property
    def arguments(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.text)
        return found


class _Generation(Extension):
    """Reads `{% generation %}`, with which transformers marks what an assistant says."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def arguments_of(template: str) -> dict[str, list[Any]]:
    """The arguments that a chat template reads beyond those of transformers: each with the values to try, which are
    both booleans and the constants that the template compares it with or falls back to.

    Raises jinja2.TemplateError where it is no template.
    """
    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols", _Generation])
    tree = environment.parse(template)
    found: dict[str, list[Any]] = {
        name: [True, False] for name in sorted(meta.find_undeclared_variables(tree) - GIVEN)
    }
    # {% set effort = reasoning_effort | default('low') %}: what the one is compared with, the other is.
    stands_for: dict[str, set[str]] = {name: {name} for name in found}
    for assigned in tree.find_all(nodes.Assign):
        if isinstance(assigned.target, nodes.Name):
            read = {each.name for each in assigned.node.find_all(nodes.Name)}
            if isinstance(assigned.node, nodes.Name):
                read.add(assigned.node.name)
            stands_for.setdefault(assigned.target.name, set()).update(read & found.keys())

    def note(name: nodes.Node, values: Iterable[nodes.Node]) -> None:
        if isinstance(name, nodes.Name):
            constants = [part for value in values for part in constants_of(value)]
            for own in stands_for.get(name.name, ()):
                found[own] += [each for each in dict.fromkeys(constants) if each not in found[own]]

    for compared in tree.find_all(nodes.Compare):
        sides = [compared.expr, *(operand.expr for operand in compared.ops)]
        for name in sides:
            note(name, (side for side in sides if side is not name))
    for filtered in tree.find_all(nodes.Filter):
        if filtered.name in ("default", "d") and filtered.node is not None:
            note(filtered.node, filtered.args)
    return found


def constants_of(node: nodes.Node) -> list[Any]:
    """The strings, numbers and booleans of a constant or a list of them."""
    if isinstance(node, nodes.List | nodes.Tuple):
        return [part for item in node.items for part in constants_of(item)]
    value = node.value if isinstance(node, nodes.Const) else None
    values = value if isinstance(value, list | tuple) else [value]
    return [each for each in values if isinstance(each, str | int | float)]


def check_known(state: State, arguments: Mapping[str, Any]) -> None:
    """Raises BadInput for a state with an argument that is not among those of the template (see `arguments_of`)."""
    if unknown := sorted(state.arguments.keys() - arguments.keys()):
        names = f"it has {', '.join(arguments)}" if arguments else "it has none"
        raise BadInput(f"--template-args: the model's chat template has no argument '{unknown[0]}'; {names}")


def states_of(
    template: str, render: Callable[[Mapping[str, Any]], str], given: Iterable[State] = ()
) -> tuple[list[State], list[State]]:
    """The states in which a template writes something else after the last user message, one argument at a time, after
    those that the user gives: at most MOST_STATES; and those beyond.

    render: a conversation whose last user message is MARK, with these arguments.

    Raises:
        BadInput: The template has no such argument, or does not take what is given.
    """
    arguments = arguments_of(template)
    endings = {render({}).rpartition(MARK)[2]}
    found = []
    for state in given:
        check_known(state, arguments)
        endings.add(render(state.arguments).rpartition(MARK)[2])
        found.append(state)
    for name, values in arguments.items():
        for value in values:
            try:
                text = render({name: value})
            except (BadInput, jinja2.TemplateError):  # a value that this argument does not have
                continue
            if MARK in text and (ending := text.rpartition(MARK)[2]) not in endings:
                endings.add(ending)
                found.append(State.of({name: value}))
    return found[:MOST_STATES], found[MOST_STATES:]
