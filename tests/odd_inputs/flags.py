"""Flags with a value of another type or out of range, beside what does not use them, twice; OUT and recipes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from exporter.recipes.declared import Setting, declared
from exporter.recipes.settings import ExportSettings, SkillSettings
from tests.odd_inputs.rows import RETAIN, TEXTS, Exported, Place, Refused, Row
from tests.tiny import write_prompts

SETTINGS = {name: each for name, each in (declared(SkillSettings) | declared(ExportSettings)).items() if each.help}


def flags(*given: str, drop: tuple[str, ...] = ()) -> Callable[[Place], object]:
    """What gives more flags, {folder} in them the place's, and leaves out some of the usual ones."""

    def make(place: Place) -> None:
        place.drop(*drop)
        place.more += [each.replace("{folder}", str(place.folder)) for each in given]

    return make


def row(*given: str, said: str = "", drop: tuple[str, ...] = ()) -> Row:
    """Refused by the name of the first flag, or with what is said."""
    return Row(" ".join(given), flags(*given, drop=drop), Refused(said or given[0]))


def wrong_type(setting: Setting) -> Row | None:
    """A value of another type, or none of the choices."""
    if setting.kind in (int, float) or setting.choices:
        return row(setting.flag, "nonsense")
    return row(f"{setting.flag}=yes", said="does not take a value") if setting.kind is bool else None


def without_value(setting: Setting) -> list[Row]:
    """At the end, and before another flag, which is not the value."""
    return [
        Row(
            f"{setting.flag} at the end", flags(setting.flag), Refused(f"Option '{setting.flag}' requires an argument")
        ),
        row(setting.flag, "--overwrite", said=f"{setting.flag}.*'--overwrite' is a flag"),
    ]


REGION = ("--alpha", "--layer")
"""What the usual flags say of a hypercube."""
NEURONS = (*REGION, "--prompt-template")

TYPES = [found for each in SETTINGS.values() if (found := wrong_type(each)) is not None]
VALUES = [found for each in SETTINGS.values() if each.kind is not bool for found in without_value(each)]

RANGES = [
    row("--layer", "3", said="--layer: 3 is out of range, the model has layers 0 to 2"),
    row("--layer", "-1"),
    row("--layer", str(10**30)),
    row("--layer", "1.0"),
    *(row("--alpha", value) for value in ("0", "-1", "nan", "inf", "1e999", "")),
    *(row("--target-block-rate", value) for value in ("0", "1", "1.5", "-0.1", "nan")),
    *(row("--max-false-block", value) for value in ("-0.1", "1.1", "nan")),
    row("--max-near-miss", "2", drop=REGION),
    *(row("--method", "na", "--beta", value, said="--beta", drop=NEURONS) for value in ("0", "101", "nan")),
    row("--method", "na", "--max-retain-loss", "0", said="--max-retain-loss", drop=NEURONS),
    row("--method", "sp", "--score", "signed-mean", said="--score", drop=NEURONS),
    *(row("--seed", value) for value in ("-1", str(2**63), "0.5", "")),
    *(row("--threads", value) for value in ("0", "-1", "1.5", "1000000")),
    *(row("--batch-size", value) for value in ("0", "-1", "1e3")),
    *(
        row("--device", value, said="--device: torch has no .*; it has cpu")
        for value in ("nowhere", "cuda:99", "meta", "")
    ),
    *(row("--refusal", value) for value in ("", " no", "N", "two\nlines", "a\x1b[2Jb", "Your\tquery")),
    Row("--refusal of 1,001 words", flags("--refusal", "Your query is not valid " * 200 + "now"), Exported()),
    row("--prompt-template", "Question:"),
    row("--prompt-template", ""),
    row("--prompt-template", "@nowhere.txt"),
    row("--prompt-template", "@"),
    *(row("--template-args", value) for value in ("nonsense", "[]", "{}", '{"a": ', '{"nonsense": true}')),
    row("--system-prompt", "", drop=("--prompt-template",)),
    row("--everyday-without", "nonsense", said="--everyday-without"),
    row("--skill", "sums", said="--skill: no skill 'sums'; there are code, "),
    row("--skill", "", said="--skill"),
    row("--skill", "language:xx", said="--skill"),
    row("--skill", "../maths", said="--skill"),
    row("--statistics", "nowhere.safetensors"),
    row("--nonsense"),
    row("--forget", "", said="--forget: no file or dataset is named"),
    row("--retain", "nowhere.jsonl", said="--retain: no such file"),
]

TOGETHER = [
    Row("--region discriminant beside --alpha", flags("--region", "discriminant"), Exported("", None)),
    row("--beta", "5", said="--beta: is for methods na, na.ksd and sp; leave it out with method ksd"),
    row("--score", "attribution", said="--score: is for methods"),
    row("--draws", "expected", said="--draws: is for methods"),
    row("--compat", "official", said="--compat"),
    row("--max-near-miss", "0.1", said="--max-near-miss: is for region discriminant; leave it out with method ksd"),
    row("--effort", "quick", said="--effort: is for region discriminant; leave it out with method ksd"),
    row("--method", "na", said="--alpha: is for|--layer: is for|--prompt-template: is for"),
    row("--method", "na", "--compat", "official", "--draws", "expected", said="--compat", drop=NEURONS),
    row("--method", "na", "--statistics", ".", said="--statistics", drop=NEURONS),
    row("--method", "na", "--statistics", "{folder}/retain.jsonl", said="--statistics", drop=NEURONS),
    row("--formats", "plain", "--system-prompt", "Be brief.", said="--system-prompt: '--formats plain'"),
    row("--system-prompt", "Be brief.", said="--system-prompt: needs a chat template"),
    row("--everyday-without", "story", said="--everyday-without: --no-everyday already leaves out"),
    row("--not", "x", said="--not: belongs to --describe TEXT, which is missing"),
    row("--save-prompts", "x.jsonl", said="--save-prompts: belongs to --describe TEXT"),
    row("--read-prompts", "x.jsonl", said="--read-prompts: belongs to --describe TEXT"),
    row("--generator", "x", said="--generator: writes prompts for --describe TEXT, which no skill has"),
    row("--describe", " ", said="--describe: the text is empty"),
    Row("--describe sums, and a model that cannot write", flags("--describe", "sums"), Refused(
        "--describe: base wrote .* are needed: name a larger model by --generator"
    ), fails="that shows only once the model has written: forwards, and then this line"),
    row("--describe", "sums", "--save-prompts", "x.txt", said="--save-prompts: x.txt must end with .jsonl"),
    row("--describe", "sums", "--save-prompts", "{folder}/out/x.jsonl", said="--save-prompts: .* lies in OUT"),
    row("--describe", "sums", "--save-prompts", "{folder}/retain.jsonl", said="--save-prompts: .* exists"),
    row("--describe", "sums", "--save-prompts", "a.jsonl", "--read-prompts", "b.jsonl", said="leave out one"),
    row("--describe", "sums", "--read-prompts", "{folder}/retain.jsonl", said="--read-prompts .*has no key 'side'"),
    row("--describe", "sums", "--generator", "{folder}/nowhere", said="--generator"),
    row("--revision", "main", said="--revision: is for models on the Hub, and MODEL base is a folder"),
    row("--public", said="--public: needs the repo of --push USER/NAME"),
    row("--data", "x", said="--data: says where to look for the files of a recipe; give --recipe too"),
    Row("--no-everyday without --retain or --layer", lambda place: (
        place.retain.clear(), place.drop("--layer")
    ), Refused("--no-everyday: without --retain no layer can be chosen")),
    Row("no --forget, no --skill", lambda place: place.forget.clear(), Refused("--forget or --skill: name a source")),
    Row("--method na without --retain", lambda place: (
        place.retain.clear(), flags("--method", "na", drop=NEURONS)(place)
    ), Refused("--retain: method na needs retain texts")),
    Row("23 prompts for regions along discriminants", lambda place: (
        write_prompts(place.folder / "forget.jsonl", TEXTS[:23]), place.drop(*REGION)
    ), Refused("--forget: .*at least 24")),
    Row("59 prompts for a hypercube", lambda place: (
        write_prompts(place.folder / "forget.jsonl", TEXTS[:59]), flags("--region", "hypercube", drop=REGION)(place)
    ), Refused("--forget: .*at least 60")),
    Row("--retain of one prompt", lambda place: write_prompts(place.folder / "retain.jsonl", RETAIN[:1]), Exported()),
]  # fmt: skip

TWICE = [
    Row("--seed 1 --seed 2: the last one counts", flags("--seed", "1", "--seed", "2"), Exported(summary={"seed": 2})),
    Row("--seed nonsense --seed 2", flags("--seed", "nonsense", "--seed", "2"), Exported(summary={"seed": 2})),
    Row("--force twice", flags("--force"), Exported()),
    Row("--no-figures --figures --no-figures", flags("--figures", "--no-figures"), Exported()),
    row("--skill", "maths", "--skill", "maths", "--skill", "nonsense", said="--skill: no skill 'nonsense'"),
    Row("--system-prompt with the same text twice", flags(
        "--system-prompt", "Be brief.", "--system-prompt", "Be brief.", drop=("--prompt-template",)
    ), Exported()),
    Row("a third argument", flags("more"), Refused("unexpected extra argument")),
    Row("--batch-size 10^30", flags("--batch-size", str(10**30)), Exported()),
    Row("--alpha 1e300 and --force: everything is refused", flags("--alpha", "1e300"), Exported(like_base=False)),
    Row("--dtype float16", flags("--dtype", "float16"), Exported(like_base=False)),
]  # fmt: skip


def out(name: str, make: Callable[[Place], object] = lambda place: None) -> Callable[[Place], object]:
    """What names another OUT; {folder} in it is the place's."""

    def of(place: Place) -> None:
        place.out = name.replace("{folder}", str(place.folder))
        make(place)

    return of


def folder_with(*names: str) -> Callable[[Place], object]:
    def make(place: Place) -> None:
        Path(place.out).mkdir()
        for name in names:
            (Path(place.out) / name).write_text("{}")

    return make


def and_overwrite(make: Callable[[Place], object]) -> Callable[[Place], object]:
    return lambda place: (make(place), place.more.append("--overwrite"))


HERE = "{folder}/out"
EXISTS = "exists: choose another folder or give --overwrite"
OUT = [
    Row("OUT is a folder", out(HERE, folder_with()), Refused(EXISTS)),
    Row("OUT is an empty folder, with --overwrite", and_overwrite(out(HERE, folder_with())), Exported()),
    Row("OUT is a folder of others, with --overwrite", and_overwrite(out(HERE, folder_with("mine.txt"))), Refused(
        "is not a checkpoint .*: --overwrite will not replace it"
    )),
    Row("OUT is a model's folder, with --overwrite", and_overwrite(out(HERE, folder_with("config.json"))), Refused(
        "is not a checkpoint that unskill wrote: --overwrite will not replace it"
    )),
    Row("OUT is a folder whose config.json is broken, with --overwrite", and_overwrite(out(HERE, lambda place: (
        folder_with()(place), (Path(place.out) / "config.json").write_text("{")
    ))), Refused("config.json is not JSON")),
    Row("OUT is a file", out("{folder}/retain.jsonl"), Refused(EXISTS)),
    Row("OUT is a file, with --overwrite", and_overwrite(out("{folder}/retain.jsonl")), Refused("is not a folder")),
    Row("OUT is a link to a folder", out(HERE, lambda place: (
        os.mkdir(place.folder / "other"), os.symlink(place.folder / "other", place.out)
    )), Refused(EXISTS)),
    Row("OUT is a link to nothing", out(HERE, lambda place: os.symlink(place.folder / "other", place.out)),
        Refused("which is not there: take the link out, or name its target")),
    Row("OUT is a link to itself", out(HERE, lambda place: os.symlink(place.out, place.out)), Refused(
        "OUT and MODEL: .*loop"
    )),
    Row("OUT is MODEL", out("{folder}/base"), Refused("OUT and MODEL must be separate folders")),
    Row("OUT is MODEL, with --overwrite", and_overwrite(out("{folder}/base")), Refused("must be separate folders")),
    Row("OUT is inside MODEL", out("{folder}/base/out"), Refused("must be separate folders")),
    Row("OUT is around MODEL", out("{folder}"), Refused("must be separate folders")),
    Row("OUT is in a folder that is not there", out("{folder}/no/out"), Refused("the folder .* does not exist")),
    Row("OUT is inside a file", out("{folder}/retain.jsonl/out"), Refused("the folder .* does not exist")),
    Row("OUT is an empty text", out(""), Refused("the name is empty")),
    Row("OUT is the root", out("/"), Refused("/")),
    Row("OUT has a name of 300 letters", out("{folder}/" + "x" * 300), Refused("the name of OUT is too long")),
    Row("OUT has a name of two lines", out("{folder}/a\nb"), Exported()),
    Row("OUT ends with a slash", out("{folder}/out/"), Exported()),
    Row("OUT has a name that begins with a hyphen", out("{folder}/-out"), Exported()),
    Row("no OUT", lambda place: setattr(place, "out", "--force"), Refused("OUT: give it on the command line or in a")),
]  # fmt: skip


def recipe(text: str | bytes, *more: str) -> Callable[[Place], object]:
    """What gives a recipe, and no flags but MODEL and OUT."""

    def make(place: Place) -> None:
        place.put("recipe.toml", text)
        place.forget, place.retain, place.flags = [], [], []
        place.more += ["--recipe", str(place.folder / "recipe.toml"), *more]

    return make


def of(text: str, said: str, name: str = "") -> Row:
    return Row(f"a recipe: {name or text}", recipe(text), Refused(said))


SOUND = 'forget = "x.jsonl"\n'
RECIPES = [
    of("a = ", "is not TOML"),
    of("nonsense = 1", "no key 'nonsense'; there are"),
    of("seed = 'one'", "seed = 'one' is not a whole number"),
    of("seed = true", "seed = True is not a whole number"),
    of("seed = -1\n" + SOUND, "--seed: -1 is not 0 or more"),
    of("alpha = nan\n" + SOUND, "--alpha: nan is not"),
    of("everyday = 'no'", "everyday = 'no' is not true or false"),
    of("forget = 1", "forget = 1 is not text or a list of texts"),
    of("forget = [1]", r"forget = \[1\] is not text or a list of texts"),
    of("overwrite = true", "no key 'overwrite'"),
    of("skill = 1", r"write each skill as its own \[\[skill\]\] table"),
    of("[skill]\n" + SOUND, r"write each skill as its own \[\[skill\]\] table"),
    of("[[skill]]\n" + SOUND + "[[skill]]\n" + SOUND, "skill 1 has no name", "two skills without names"),
    of(("[[skill]]\nname = 'a'\n" + SOUND) * 2, "'a' is the name of two skills", "two skills of one name"),
    of("[[skill]]\nname = ''\n" + SOUND, "give each skill a name of one line"),
    of("[[skill]]\nname = 'a'\nseed = 1\n" + SOUND, "skill a: no key 'seed'"),
    of("[recorded]\nnonsense = 1", r"\[recorded\] may hold"),
    of("[recorded]\nbase = 1", r"\[recorded\] may hold only sha256 digests"),
    of("model = 'a'\nout = 'b'\n" + SOUND, "no such file|x.jsonl", "MODEL and OUT in it and on the command line"),
    of("", "--forget or --skill: name a source", "an empty file"),
    of("a = " + "[" * 20_000, "is not TOML|nested too deeply", "nested 20,000 deep"),
    of("a." * 20_000 + "b = 1", "is not TOML|nested too deeply|no key", "a key of 20,000 parts"),
    of("seed = " + "9" * 5000, "is not TOML|--seed", "a number of 5,000 digits"),
    Row("a recipe in bytes that are no UTF-8", recipe(b"\xff\xfe"), Refused("is not TOML")),
    Row("a recipe that is a folder", flags("--recipe", "{folder}"), Refused("--recipe")),
    Row("a recipe that is not there", flags("--recipe", "{folder}/nowhere.toml"),
        Refused("--recipe: .* cannot be read")),
    Row("a recipe and --data of a file", recipe(SOUND, "--data", "nowhere"),
        Refused("--data: nowhere is not a folder")),
    Row("a recipe with all that the flags say", lambda place: (
        recipe("\n".join([
            f"forget = {json.dumps(place.forget)}", f"retain = {json.dumps(place.retain)}", "everyday = false",
            "layer = 1", "alpha = 5.0", 'prompt_template = "{prompt}"', "force = true", "threads = 1"
        ]), "--no-figures")(place)
    ), Exported()),
]  # fmt: skip

FLAGS = [*TYPES, *VALUES, *RANGES, *TOGETHER, *TWICE, *OUT, *RECIPES]
