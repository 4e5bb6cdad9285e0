"""Finding a checkpoint: a local folder, or a repository of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from sdexport.checkpoints.diffusers_layout import CLASSES
from sdexport.checkpoints.weight_file import PICKLE_HINT
from sdexport.checkpoints.weight_sets import has_weights
from sdexport.engines.errors import CheckpointError

_WANTED = ("model_index.json", "tokenizer*/*", "scheduler/*", "feature_extractor/*.json")
_OF_COMPONENT = ("*.json", "*.safetensors")
_BELOW = "*/*"
"""What is not at the top of a repository: an asterisk also stands for slashes."""
_STEM = "diffusion_pytorch_model"
_UNWANTED = ["*.fp16.*", "*.fp16-*", "*.bf16.*", "*non_ema*"]


def locate(
    source: str | Path,
    revision: str | None,
    *,
    variant: str | None = None,
    allow_pickle: bool = False,
    without: Collection[str] = (),
) -> tuple[Path, dict[str, str]]:
    """The folder of a checkpoint, downloaded if `source` is the id of a repository.

    Args:
      variant, allow_pickle: which weights are downloaded; see weight_sets.files_in.
      without: components that are not downloaded.
    Returns: the folder, and what the manifest says of the origin.
    Raises: FileNotFoundError: no such folder. CheckpointError: it is a file. ConnectionError: the
      hub cannot be reached, or has no such repository.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder, {"type": "folder"}
    if folder.is_file():
        raise CheckpointError(f"{source} is a file; expected a diffusers folder or a hub id")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise _no_folder(source)
    parts = [part for part in CLASSES if part not in without]
    found = _download(str(source), revision, variant, allow_pickle, parts)
    return found, {"type": "hub", "id": str(source), "revision": found.name}


def locate_adapter(
    source: str | Path,
    revision: str | None,
    *,
    variant: str | None = None,
    allow_pickle: bool = False,
    check: Callable[[Path], object] = lambda folder: None,
) -> tuple[Path, dict[str, str] | None]:
    """The folder of an adapter, downloaded if `source` is the id of a repository.

    Of a repository the files at its top are downloaded, as variants and formats of a checkpoint's.

    Args:
      check: called with a downloaded folder that holds config.json alone, before the weights.
    Returns: the folder, and what the manifest says of the origin; None of a local folder.
    Raises: FileNotFoundError: no such folder. ConnectionError: the hub cannot be reached, or has no
      such repository. CheckpointError: no adapter at its top; what `check` raises.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder, None
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise _no_folder(source)
    found = _snapshot(str(source), revision, ["config.json", "model_index.json"], [_BELOW])
    if not any((found / name).is_file() for name in ("config.json", "model_index.json")):
        raise CheckpointError(
            f"{source}: no config.json at the top of the repository; download the file of the "
            "adapter, as of IP-Adapters, and give that"
        )
    check(found)
    _snapshot(str(source), found.name, [f"{_STEM}*.safetensors*"], [*_UNWANTED, _BELOW])
    _fetch_weights(str(source), found, [""], variant, allow_pickle=allow_pickle)
    if not (allow_pickle or has_weights(found, "")):
        raise CheckpointError(
            f"{source}: no weights named {_STEM}.safetensors at the top of the repository; "
            f"if there are .bin files: {PICKLE_HINT}"
        )
    return found, {"type": "hub", "id": str(source), "revision": found.name}


def _snapshot(
    repository: str, revision: str | None, wanted: list[str], unwanted: list[str]
) -> Path:
    from huggingface_hub import snapshot_download

    with _explained(repository):
        return Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=wanted, ignore_patterns=unwanted
            )
        )


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """Turn the hub's errors in a block into those of `locate`."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    try:
        yield
    except HFValidationError as error:  # a path such as ./model also looks like an id
        raise _no_folder(repository) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ConnectionError(
            f"no folder {repository}, and it could not be fetched from the hub "
            f"({type(error).__name__}); check the name and the network, or give a local folder"
        ) from error


def _no_folder(source: str | Path) -> FileNotFoundError:
    return FileNotFoundError(f"no checkpoint at {source}: there is no such folder")


def _download(
    repository: str,
    revision: str | None,
    variant: str | None,
    allow_pickle: bool,
    components: Collection[str],
) -> Path:
    wanted = [*_WANTED, *(f"{part}/{name}" for part in components for name in _OF_COMPONENT)]
    found = _snapshot(repository, revision, wanted, _UNWANTED)
    parts = [part for part in components if (found / part / "config.json").is_file()]
    _fetch_weights(repository, found, parts, variant, allow_pickle=allow_pickle)
    return found


def _fetch_weights(
    repository: str, found: Path, parts: list[str], variant: str | None, *, allow_pickle: bool
) -> None:
    """Download the chosen variant, and where there are no weights yet, those by other names.

    Args:
      parts: folders of components; the empty text is the top of the repository.
    """
    from huggingface_hub import snapshot_download

    def fetch(parts: list[str], pattern: str) -> None:
        patterns = [f"{part}/{pattern}" if part else pattern for part in parts]
        unwanted = {} if all(parts) else {"ignore_patterns": [_BELOW]}
        snapshot_download(repository, revision=found.name, allow_patterns=patterns, **unwanted)

    with _explained(repository):
        if variant:
            fetch(parts, f"*.{variant}*")
        for pattern in ("*.fp16*", "*.safetensors", *(["*.bin*"] * allow_pickle)):
            without = [p for p in parts if not has_weights(found, p, allow_pickle=allow_pickle)]
            if without:  # published in half precision alone, or without .safetensors
                fetch(without, pattern)
