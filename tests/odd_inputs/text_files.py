"""Prompt files of text: separated values, JSON, one prompt a line; sound and broken."""

from __future__ import annotations

import json

from tests.odd_inputs.chats import jsonl, separated, source
from tests.odd_inputs.rows import TEXTS, Exported, Place, Refused, Row

LINES = "".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS)
COUNT = len(TEXTS)
PROMPTS = f"{COUNT} prompts from column "
QUOTED = [text.replace(" and ", ' "and"\n') for text in TEXTS]


def again(place: Place) -> None:
    place.forget *= 2


def both_sides(place: Place) -> None:
    place.retain = place.forget


def too_long(place: Place) -> None:
    jsonl({"prompt": text} for text in [*TEXTS, "very " * 4000 + "long?"])(place)


def left_out(place: Place) -> None:
    too_long(place)
    place.more.append("--skip-long")


SEPARATED = [
    Row(
        "CSV separated by semicolons",
        source("forget.csv", separated([["id", "prompt"], *([str(len(t)), t] for t in TEXTS)], ";")),
        Exported(PROMPTS + "prompt, separated by semicolons"),
    ),
    Row(
        "CSV separated by tabs",
        source("forget.csv", separated([["id", "prompt"], *([str(len(t)), t] for t in TEXTS)], "\t")),
        Exported(PROMPTS + "prompt, separated by tabs"),
    ),
    Row(
        "CSV separated by vertical bars",
        source("forget.csv", separated([["id", "prompt"], *([str(len(t)), t] for t in TEXTS)], "|")),
        Exported(PROMPTS + "prompt, separated by vertical bars"),
    ),
    Row(
        "TSV",
        source("forget.tsv", separated([["id", "prompt"], *([str(len(t)), t] for t in TEXTS)], "\t")),
        Exported(PROMPTS + "prompt, separated by tabs"),
    ),
    Row(
        "CSV of Excel: a byte order mark, sep=; first, CRLF",
        source(
            "forget.csv",
            "\ufeffsep=;\r\n"
            + separated([["id", "prompt"], *([str(len(t)), t] for t in TEXTS)], ";").replace("\n", "\r\n"),
        ),
        Exported(PROMPTS + "prompt, separated by"),
    ),
    Row(
        "CSV with line breaks and quotes inside quoted cells",
        source("forget.csv", separated([["id", "prompt"], *([str(len(t)), t] for t in QUOTED)])),
        Exported(PROMPTS + "prompt, separated by commas", QUOTED),
    ),
    Row(
        "CSV cells NA, null and 007",
        source("forget.csv", separated([["id", "prompt"], *(["1", t] for t in [*TEXTS, "NA", "null", "007"])])),
        Exported(f"{COUNT + 3} prompts from column prompt", [*TEXTS, "NA", "null", "007"]),
    ),
    Row(
        "CSV of one column without a header",
        source("forget.csv", separated([[text] for text in TEXTS])),
        Exported(f"{COUNT - 1} prompts from column {TEXTS[0][:12]}", TEXTS[1:]),
    ),
    Row("CSV with a header alone", source("forget.csv", "id,prompt\n"), Refused("the file holds no rows")),
    Row("CSV with a quote that is not closed", source("forget.csv", 'id,prompt\n1,"what\n2,x\n'),
        Refused("not valid CSV")),
    Row("CSV with a row of three cells under two names", source("forget.csv", "id,prompt\n1,a\n2,b,c\n"), Refused(
        "line 3 has 3 fields, the header 2, separated by commas; put cells that hold one in double quotes"
    )),
    Row("CSV whose header names a column twice", source("forget.csv", "prompt,prompt\na,b\n"),
        Refused("column twice")),
    Row("CSV that commas and semicolons separate alike", source("forget.csv", "a,b;c\n1,2;3\n"), Refused(
        "commas and semicolons separate its lines alike; begin it with a line 'sep=,'"
    )),
    Row("CSV of numbers alone", source("forget.csv", "a,b\n1,2\n3,4\n"), Refused("name the column")),
    Row("JSON lines named .csv", source("forget.csv", LINES), Refused("holds JSON and not separated values; name it")),
]  # fmt: skip

JSON = [
    Row("JSON: a list under data, beside a version", source(
        "forget.json", json.dumps({"version": "1", "data": [{"prompt": text} for text in TEXTS]})
    ), Exported(PROMPTS + "prompt, the list under 'data'")),
    Row("JSON: lists under train and test", source(
        "forget.json", json.dumps({"train": [{"prompt": text} for text in TEXTS], "test": [{"prompt": "x"}]})
    ), Refused("is one object with lists under train, test; save the list that is meant")),
    Row("JSON of pandas: objects by column", source(
        "forget.json", json.dumps({"prompt": dict(enumerate(TEXTS)), "id": {"0": 1}})
    ), Refused(r'is one object with objects under prompt, id; .*orient="records"')),
    Row("JSON list after blank lines", source(
        "forget.json", "\n\n" + json.dumps([{"prompt": text} for text in TEXTS], indent=2)
    ), Exported(PROMPTS + "prompt")),
    Row("JSON list of texts with a byte order mark", source("forget.json", "\ufeff" + json.dumps(TEXTS)), Exported(
        PROMPTS + "text"
    )),
    Row("JSON list named .jsonl", source("forget.jsonl", json.dumps([{"prompt": t} for t in TEXTS], indent=1)),
        Exported(
        PROMPTS + "prompt"
    )),
    Row("JSON lines named .json", source("forget.json", LINES), Exported(PROMPTS + "prompt")),
    Row("JSON lines with blank ones between and CRLF", source("forget.jsonl", LINES.replace("\n", "\r\n\r\n")),
        Exported(
        PROMPTS + "prompt"
    )),
    Row("JSON lines with NaN, null and blanks for a prompt", source(
        "forget.jsonl", LINES + '{"prompt": NaN}\n{"prompt": null}\n{"prompt": "  "}\n'
    ), Exported(PROMPTS + "prompt, 3 rows without text left out")),
    Row("JSON lines, the last one broken off", source("forget.jsonl", LINES + '{"prompt": "half\n'), Refused(
        f"line {COUNT + 1} is not valid JSON"
    )),
    Row("JSON lines with half a surrogate pair", source("forget.jsonl", LINES + '{"prompt": "\\ud800"}\n'), Refused(
        f"row {COUNT + 1} holds half a surrogate pair, which is not a character"
    )),
    Row("JSON with a comma too many", source("forget.json", '[{"prompt": "a"},]'), Refused("is not valid JSON")),
    Row("JSON of one number", source("forget.json", "7"), Refused("is neither a JSON list nor an object")),
    Row("JSON nested 100,000 deep", source("forget.json", "[" * 100_000), Refused("nested too deeply|not valid JSON")),
    Row("an object of one prompt", source("forget.json", '{"prompt": "a"}'), Refused("--forget: .*at least 20")),
]  # fmt: skip

TEXT = [
    Row("text, one prompt a line, of an old Mac", source("forget.txt", "\r".join(TEXTS)), Exported(
        PROMPTS + "text, one prompt a line"
    )),
    Row("text with U+2028 inside prompts", source("forget.txt", "\n".join(t.replace(" ", "\u2028", 1) for t in TEXTS)),
        Exported(PROMPTS + "text", [text.replace(" ", "\u2028", 1) for text in TEXTS])),
    Row("JSON lines named .txt", source("forget.txt", LINES), Refused("holds JSON and not one prompt a line")),
    Row("Latin-1", source("forget.txt", "naïve\n".encode("latin-1") * 60), Refused("line 1 is not UTF-8 text .*save")),
    Row("UTF-16 with a byte order mark", source("forget.txt", "\n".join(TEXTS).encode("utf-16")), Refused("UTF-8")),
    Row("UTF-16 without a byte order mark", source("forget.txt", "\n".join(TEXTS).encode("utf-16-le")),
        Refused("UTF-8")),
    Row("the same as CSV", source("forget.csv", "\n".join(["prompt", *TEXTS]).encode("utf-16-be")), Refused("UTF-8")),
    Row("a prompt with a NUL byte far behind", source("forget.txt", "\n".join([*TEXTS, "a\0b"])),
        Exported(texts=[*TEXTS, "a\0b"])),
    Row("an empty file", source("forget.txt", ""), Refused("the file is empty")),
    Row("blank lines alone", source("forget.txt", "\n \n\t\n"), Refused("the file holds no rows")),
    Row("one prompt", source("forget.txt", TEXTS[0]), Refused("--forget: .*at least 20")),
    Row("one prompt 60 times", source("forget.txt", "\n".join([TEXTS[0]] * 60)), Refused("--forget: .*at least 20")),
    Row("each prompt twice", source("forget.txt", "\n".join(TEXTS * 2)), Exported(f"{2 * COUNT} prompts from column")),
    Row("the same file twice", again, Exported(PROMPTS + "prompt")),
    Row("the same file on both sides", both_sides, Refused("--retain")),
    Row("a prompt longer than the context", too_long, Refused(f"row {COUNT + 1} .*--skip-long")),
    Row("the same with --skip-long", left_out, Exported("1 prompts? .* longer than the model's context")),
]  # fmt: skip

TEXT_FILES = [*SEPARATED, *JSON, *TEXT]
