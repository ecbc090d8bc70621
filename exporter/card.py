"""The model card: what the checkpoint does, how well, and what it is not."""

from __future__ import annotations

from importlib import resources
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from exporter.model import Base
from exporter.settings import ExportSettings
from exporter.summary import neurons_line, promise, warning_lines

TAGS = ["unlearning", "skill-unlearning", "custom_code", "unskill", "arxiv:2503.21730"]
METHOD_TAGS = {
    "ksd": ["key-space-detection"],
    "na": ["neuron-adjust"],
    "na+ksd": ["neuron-adjust", "key-space-detection"],
    "sp": ["selective-pruning"],
}
# What a base's card says of its licence; the checkpoint is a derivative and inherits it.
LICENCE_KEYS = ("license", "license_name", "license_link", "language")


def render_card(base: Base, settings: ExportSettings, summary: dict[str, Any]) -> str:
    """README.md of a checkpoint, with the base's licence where its card names one."""
    inherited: dict[str, Any] = {}
    readme = base.folder / "README.md"
    if readme.is_file():
        data = ModelCard.load(readme, ignore_metadata_errors=True).data.to_dict()
        inherited = {name: data[name] for name in LICENCE_KEYS if name in data}
    if base.revision is not None:
        inherited |= {"base_model": base.name, "base_model_relation": "finetune"}
    methods = [tag for skill in settings.skills for tag in METHOD_TAGS[skill.method]]
    tags = [*TAGS, *dict.fromkeys(methods)]
    card_data = ModelCardData(library_name="transformers", pipeline_tag="text-generation", tags=tags, **inherited)
    template = resources.files("exporter").joinpath("templates", "card.md.jinja").read_text(encoding="utf-8")
    card = ModelCard.from_template(
        card_data,
        template_str=template,
        base=base.name,
        settings=settings,
        summary=summary,
        promise=promise,
        neurons_line=neurons_line,
        warnings=warning_lines(summary),
    )
    return str(card)
