"""Sources of the export, given again for the texts of its prompts: a checkpoint has their rows and sha256 only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from exporter.checkpoint.reading import Records, Stored
from exporter.common.errors import BadInput
from exporter.common.text import Notify, unheard
from exporter.prompts.packaged import everyday_prompts
from exporter.prompts.packaged_skills import packaged_skill, packaged_skills
from exporter.prompts.sources import Prompt, Source, fingerprint, load_prompts
from exporter.prompts.turns import RENDERED
from exporter.prompts.written import read_written

Key = tuple[int, str]
"""Row and sha256 of a prompt, as in `prompts.json`."""


class Given(dict[Key, Prompt]):
    """Prompts whose texts are known again; none without sources."""

    def find(self, record: Mapping[str, Any]) -> Prompt | None:
        return self.get((record["row"], record["sha256"]))

    def known(self, records: Records) -> list[Prompt]:
        """The prompts of these records whose texts are known, in their order."""
        return [prompt for prompt in map(self.find, records) if prompt is not None]


def read_given(stored: Stored, forget: Sequence[str], retain: Sequence[str], notify: Notify = unheard) -> Given:
    """Read the sources, and with any of them, or where the export had a packaged skill, all packaged prompts.

    A source given without column= and so on is read as the export read it; notify is told how. Raises BadInput where
    it is no source of the export, or a row that the export used has changed.
    """
    given = Given()
    for flag, specs in (("--forget", forget), ("--retain", retain)):
        for spec in specs:
            given |= read_again(stored, spec, flag, notify)
    if not given and all(each.flag != "--skill" for skill in stored.skills for each in skill.summary.sources):
        return given
    skills = map(packaged_skill, packaged_skills())
    packaged = chain(everyday_prompts(), *((*skill.forget, *skill.near_misses) for skill in skills))
    return Given(by_key(packaged) | given)


def read_again(stored: Stored, spec: str, flag: str, notify: Notify) -> dict[Key, Prompt]:
    """The prompts of one source, read in every way that gives rows of the export: skills may share a name."""
    if written := read_written_again(stored, spec, flag):
        return written
    prompts: dict[Key, Prompt] = {}
    errors = []
    for source in as_exported(stored, spec, flag):
        said: list[str] = []
        try:
            found = load_prompts(source, flag, said.append)
            check_rows(stored, found, flag)
        except BadInput as error:
            errors.append(error)
        else:
            prompts |= by_key(found)
            for text in said:
                notify(text)
    if not prompts:
        raise errors[0]
    return prompts


def read_written_again(stored: Stored, spec: str, flag: str) -> dict[Key, Prompt]:
    """The prompts of a file of --save-prompts that the export had (sha256), both sides; of another source none."""
    source = Source.parse(spec, flag)
    if source.path is None or not source.path.is_file():
        return {}
    digest = fingerprint(source, flag)
    records = [record for skill in stored.skills for record in skill.summary.sources if record.flag == "--describe"]
    if all(record.fingerprint != digest for record in records):
        return {}
    written = read_written(spec)
    return by_key((*written.forget, *written.near_misses))


def by_key(prompts: Iterable[Prompt]) -> dict[Key, Prompt]:
    return {(prompt.row, prompt.sha256): prompt for prompt in prompts}


def as_exported(stored: Stored, spec: str, flag: str) -> list[Source]:
    """The source as it is given, or where it has no options, with each of those that the export read it with."""
    source = Source.parse(spec, flag)
    records = [each for skill in stored.skills for each in skill.summary.sources if each.flag == flag]
    options: list[Mapping[str, Any]] = [each.options for each in records if each.name == source.label]
    if not options:
        names = ", ".join(dict.fromkeys(each.name for each in records)) or "none"
        raise BadInput(f"{flag} {source.label}: is not a source of this checkpoint; its {flag} sources are {names}")
    if source.options:
        return [source]
    return list(dict.fromkeys(replace(source, **each) for each in options))


def check_rows(stored: Stored, found: Sequence[Prompt], flag: str) -> None:
    """Raises BadInput where the rows are not those that the export read under this source's name."""
    label, keys, rows = found[0].source, by_key(found), {prompt.row for prompt in found}
    # Of files of one name, in one skill or in several, the one that has most of these rows.
    labels: defaultdict[tuple[str, str], set[Key]] = defaultdict(set)
    for skill in stored.skills:
        ours = {each.label for each in skill.summary.sources if each.flag == flag and each.name == label}
        parts = [part for part in skill.prompts if part.removeprefix("texts.").startswith(flag.removeprefix("--"))]
        for record in chain.from_iterable(skill.prompts[part] for part in parts):
            # A rendering has the row of its prompt, and a text of its own.
            if record["source"] in ours and record["format"] != RENDERED:
                labels[skill.name, record["source"]].add((record["row"], record["sha256"]))
    best = max(labels.values(), key=lambda wanted: len(wanted & keys.keys()), default=set())
    if not best & keys.keys():
        raise BadInput(
            f"{flag} {label}: none of its rows is a row that the export read (sha256); is it the same column?"
        )
    if changed := sorted(row for row, sha in best if row in rows and (row, sha) not in keys):
        raise BadInput(f"{flag} {label}: row {changed[0]} is not what the export read (sha256); give it as it was")
