"""Chats as data sets hold them, whatever they call a message's role and its text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from exporter.common.errors import BadInput

ROLES = ("role", "from", "speaker", "author", "sender")
CONTENTS = ("content", "value", "text", "parts", "message", "utterance")
"""Keys of a message, of which the first that is filled counts: `role` and `content`, ShareGPT's `from` and `value`,
OpenAssistant's `role` and `text`, Gemini's `role` and `parts`, and those of dialogues."""

USER = ("user", "human", "prompter")
ASSISTANT = ("assistant", "gpt", "model", "bot", "chatbot", "ai", "chatgpt")
OTHER = ("system", "developer", "tool", "function", "function_call", "observation", "ipython")
"""Roles in lower case."""

Message = tuple[str, Any]
"""Role in lower case, and content."""


def as_chat(value: Any) -> list[Message] | None:
    """The messages of a cell: of a list, of one message, of lists by key as Arrow may have them, or of JSON text of
    any of these. None where the cell is no chat; an empty list is an empty chat."""
    if isinstance(value, str):
        value = _parsed(value)
    if isinstance(value, Mapping):
        lists = {key: each for key, each in value.items() if isinstance(each, list)}
        if len(lists) == len(value) > 0 and len({len(each) for each in lists.values()}) == 1:
            value = [dict(zip(lists, each, strict=True)) for each in zip(*lists.values(), strict=True)]
        else:
            value = [value]
    if not isinstance(value, list):
        return None
    messages = [_message(each) for each in value]
    return None if None in messages else [each for each in messages if each is not None]


def _parsed(text: str) -> Any:
    """What JSON text holds; None for text that is no JSON list or object."""
    if not text.lstrip().startswith(("[", "{")):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _message(value: Any) -> Message | None:
    if not isinstance(value, Mapping):
        return None
    role = next((value[key] for key in ROLES if value.get(key) is not None), None)
    contents = [key for key in CONTENTS if key in value]
    if not isinstance(role, str) or not contents:
        return None
    filled = (value[key] for key in contents if value[key] is not None)
    return role.strip().lower(), next(filled, None)


def looks_like_chat(text: str) -> bool:
    """Whether a text is messages in another spelling than JSON, such as Python's, which pandas writes into CSV."""
    text = text.strip()
    if not text.startswith(("[", "{", "array(")) or not text.endswith(("]", "}", ")")) or as_chat(text) is not None:
        return False
    return all(re.search(f"['\"]({'|'.join(names)})['\"]\\s*:", text) for names in (ROLES, CONTENTS))


def asks(chat: Sequence[Message]) -> bool:
    """Whether a chat holds a message of the user."""
    return any(role in USER for role, _ in chat)


def roles_of(chat: Sequence[Message]) -> list[str]:
    return list(dict.fromkeys(role for role, _ in chat))


def last_user_message(chat: Sequence[Message], where: str) -> str:
    """The text of the user's last message; "" where the user says nothing. where: how errors name the cell.

    Raises BadInput where none of the roles is known as the user's and one is unknown, and for content that is no text.
    """
    for role, content in reversed(chat):
        if role in USER:
            return _text(content, f"{where}: the content of the last user message")
    if unknown := [role for role in roles_of(chat) if role not in (*ASSISTANT, *OTHER)]:
        raise BadInput(f"{where}: {no_user(unknown)}")
    return ""


def no_user(roles: Sequence[str]) -> str:
    """What an error says of a chat with these roles."""
    return f"no message has the user's role ({', '.join(USER)}); the roles are {', '.join(roles)}"


def last_answer(chat: Sequence[Message], where: str) -> str:
    """The text of the last answer to the user's last message; "" where there is none. Raises as the above."""
    for role, content in reversed(chat):
        if role in USER:
            break
        if role in ASSISTANT:
            return _text(content, f"{where}: the content of the last answer")
    return ""


def _text(content: Any, where: str) -> str:
    """The text of a message: itself, or its parts' joined; "" for null and for parts of another kind."""
    if isinstance(content, Mapping):
        content = content.get("parts", content)
    if isinstance(content, list) and all(isinstance(part, (str, Mapping)) for part in content):
        content = "".join(part if isinstance(part, str) else part.get("text") or "" for part in content)
    if content is not None and not isinstance(content, str):
        raise BadInput(f"{where} is {type(content).__name__}, not text")
    return content or ""
