"""Datasets of the Hugging Face Hub as tables."""

from __future__ import annotations

from pathlib import Path

from exporter.common.errors import BadInput, first_line
from exporter.prompts.tables.arrow import table_of_dataset
from exporter.prompts.tables.table import Table


def read_hub(
    dataset_id: str, *, name: str | None, split: str | None, revision: str | None, limit: int | None, where: str
) -> Table:
    """Read the first `limit` rows of one split of a Hub dataset, through the usual cache of `datasets`.

    Without `split`, "train" is taken, or the only split.

    Raises:
        BadInput: Unknown dataset, configuration, revision or split; the Hub cannot be reached.
    """
    # The commit, not the branch: what is read is what the fingerprint says, whatever is pushed meanwhile.
    commit, folder = find_dataset(dataset_id, revision, where)
    import datasets
    from datasets.exceptions import DatasetsError
    from datasets.utils import logging

    bars, level = datasets.are_progress_bars_disabled(), logging.get_verbosity()
    datasets.disable_progress_bars()
    logging.set_verbosity(logging.CRITICAL)  # the error is reported below, in one line
    try:
        if folder is not None:
            loaded = datasets.load_dataset(str(folder), name, split=split)
        else:
            loaded = datasets.load_dataset(dataset_id, name, split=split, revision=commit)
    except (DatasetsError, ValueError, OSError, RuntimeError) as error:
        raise BadInput(f"{where}: the dataset cannot be loaded ({first_line(error)})") from error
    finally:
        logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()
    if isinstance(loaded, datasets.Dataset):
        return table_of_dataset(loaded, limit)
    choice = "train" if "train" in loaded else next(iter(loaded)) if len(loaded) == 1 else None
    if choice is None:
        raise BadInput(f"{where}: name the split with split=; there are {', '.join(map(str, loaded))}")
    return table_of_dataset(loaded[choice], limit)


def find_dataset(dataset_id: str, revision: str | None, where: str) -> tuple[str, Path | None]:
    """The commit (40 hex digits) of a dataset's revision; where HF_HUB_OFFLINE is set, the cached one and its folder.

    Offline, `datasets` itself would take the latest cached version, whatever the revision.

    Raises:
        BadInput: Unknown dataset or revision; the Hub cannot be reached.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    from exporter.common.hub import download_errors

    with download_errors(where, "dataset", dataset_id, revision):
        if constants.HF_HUB_OFFLINE:
            folder = Path(snapshot_download(dataset_id, repo_type="dataset", revision=revision, local_files_only=True))
            return folder.name, folder
        commit = HfApi().dataset_info(dataset_id, revision=revision, timeout=30).sha
    if commit is None:
        raise BadInput(f"{where}: the Hub names no commit for this dataset")
    return commit, None
