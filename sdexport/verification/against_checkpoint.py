"""A package beside its checkpoint: PyTorch and the graphs are given the same fresh random inputs.

Unlike the recorded answers this needs PyTorch and the checkpoint; the inputs are new each time and
of several sizes, so that an axis which is not really dynamic shows.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.checkpoints.diffusers_layout import tokenizer_folder
from sdexport.checkpoints.sources import Options, open_source
from sdexport.checkpoints.textual_inversion import LEGACY_EOS
from sdexport.engines import EngineError, TensorSpec
from sdexport.engines.errors import CheckpointError, InvalidArgumentError, PackageError
from sdexport.engines.onnx_file.graph_specs import graph_specs
from sdexport.engines.session import Feeds
from sdexport.graphs.wrappers import Part, parts
from sdexport.runtime.backend_choice import Backends
from sdexport.runtime.component_sessions import Components
from sdexport.runtime.packages.package import EDGES, Package
from sdexport.runtime.text.tokenizer import ClipTokenizer
from sdexport.verification.reference import TorchSession
from sdexport.verification.verifier import Check, Progress, compared, failed_check

LARGEST_CELLS = 32
"""Cells of the largest latents, along a side: enough to show a mistake, and small in memory."""
_WORDS = "a small yellow star, très joli 🔴 (don't) 1234"


def verify_against(
    package: Package,
    source: str | Path,
    backend: Backends = "onnxruntime",
    *,
    seed: int,
    revision: str | None = None,
    options: Options | None = None,
    progress: Progress = lambda what: None,
    **session_options: Any,
) -> list[Check]:
    """Compare every component with the checkpoint's module, one in memory at a time.

    Args:
      source, revision, options: the checkpoint as it was exported; see sources.py.
      seed: of the random inputs; 0 or more.
      progress: called with each component as it begins.
    Returns: one row for the configuration, and one for each component, shape and output.
    Raises: FileNotFoundError, ValueError, ConnectionError: see open_source. ValueError: a
      checkpoint of another family or size.
    """
    checkpoint = open_source(source, revision=revision, options=options)
    every = parts(checkpoint.configs)
    _check_same_kind(package, checkpoint, every)
    checks = [_configuration(package, checkpoint)]
    rng = np.random.default_rng(seed)
    levels = len(checkpoint.configs["unet"].block_out_channels)
    step = 1 if package.manifest.files else 2 ** (levels - 1)  # Optimum's know no odd latents
    loaded: tuple[str, Any] = ("", None)
    for part in every:
        progress(part.name)
        config = checkpoint.configs[part.source]
        feeds = [_feeds(part, sizes, config, rng) for sizes in _sizes(part.name, checkpoint, step)]
        if loaded[0] != part.source:
            loaded = (part.source, checkpoint.load(part.source))
        with TorchSession(part, loaded[1]) as session:
            answers = [session.run(each) for each in feeds]
        if part.name != "vae_decoder":  # the encoder is of the same module
            loaded = ("", None)
        with closing(Components(package, backend, session_options, {}, low_memory=True)) as graphs:
            for each, expected in zip(feeds, answers, strict=True):
                checks += _compare(graphs, package, part, each, expected)
    return checks


def _sizes(name: str, checkpoint: Checkpoint, step: int) -> list[dict[str, int]]:
    """Named dimensions of each trial: the usual ones, odd ones, and a batch of eight.

    Args:
      step: what latents must be multiples of.
    """
    unit = checkpoint.downscale
    length = checkpoint.configs[checkpoint.text_encoders[0]].max_position_embeddings
    height, width = (min(side, LARGEST_CELLS) for side in checkpoint.sample_size)
    lengths = (length, length // 4, length) if "text" in name else (length, 2 * length, length)
    odd = [[-(-side // step) * step for side in cells] for cells in ((17, 11), (9, 13))]
    return [
        {
            "batch": batch,
            "sequence": sequence,
            "height": down,
            "width": across,
            "image_height": down * unit,
            "image_width": across * unit,
        }
        for batch, sequence, (down, across) in zip(
            (1, 3, 8), lengths, ((height, width), *odd), strict=True
        )
    ]


def _feeds(
    part: Part, sizes: dict[str, int], config: SimpleNamespace, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    example = part.example(sizes, seed=int(rng.integers(2**31)))
    feeds = {name: tensor.numpy() for name, tensor in example.items()}
    if "timestep" in feeds:
        feeds["timestep"] = rng.uniform(0, 999, 1).astype(np.float32)
    if "input_ids" in feeds:
        rows, length = feeds["input_ids"].shape
        ids = rng.integers(0, config.vocab_size, (rows, length))
        eos = config.eos_token_id
        known = eos != LEGACY_EOS and 0 <= eos < config.vocab_size
        ids[np.arange(rows), rng.integers(0, length, rows)] = (
            eos if known else config.vocab_size - 1
        )
        feeds["input_ids"] = ids
    return feeds


def _compare(
    graphs: Components, package: Package, part: Part, feeds: Feeds, expected: Feeds
) -> list[Check]:
    precision = package.manifest.components[part.name].precision
    shown = _shown(feeds)
    specs, given = graph_specs(package.model_path(part.name))
    try:
        fitted = {s.name: _fitted(feeds[s.name], s) for s in specs}
        actual = graphs.run(part.name, fitted)
    except (EngineError, PackageError, ValueError) as failure:
        return [failed_check(part.name, str(failure), inputs=shown)]
    there = {spec.name for spec in given} | EDGES[part.name][1]
    wanted = {name: value for name, value in expected.items() if name in there}
    return compared(part.name, precision, wanted, actual, inputs=shown)


def _fitted(value: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """A timestep may be a scalar in graphs of Optimum; ids may be of another integer type."""
    shaped = value.reshape(()) if not spec.shape else value
    return shaped.astype(spec.dtype, copy=False)


def _shown(feeds: Feeds) -> str:
    """The sizes of the first input, and the length of the text."""
    first, *_ = feeds.values()
    text = feeds.get("encoder_hidden_states")
    tokens = "" if text is None else f", {text.shape[1]} tokens"
    return "x".join(map(str, first.shape)) + tokens


def _check_same_kind(package: Package, checkpoint: Checkpoint, every: Iterable[Part]) -> None:
    """ValueError if this cannot be what the package was exported from."""
    there, wanted = package.manifest.components, {part.name: part for part in every}
    advice = "give the checkpoint, and the options, that the package was exported with"
    if set(there) != set(wanted) or package.manifest.family != checkpoint.family:
        raise InvalidArgumentError(
            f"{checkpoint.label} is {checkpoint.family}, {package.folder} is "
            f"{package.manifest.family} ({', '.join(there)}); {advice}"
        )
    for name, part in wanted.items():
        found = {s.name: s for specs in graph_specs(package.model_path(name)) for s in specs}
        needed = (*part.inputs, *(s for s in part.outputs if s.name in EDGES[name][1]))
        for spec in needed:
            graph = found.get(spec.name)
            if graph is None or not _fits(graph, spec):
                raise InvalidArgumentError(
                    f"{checkpoint.label}: {name}: {spec.name} is {spec}, in {package.folder} it is "
                    f"{graph or 'missing'}; {advice}"
                )


def _fits(graph: TensorSpec, spec: TensorSpec) -> bool:
    if not graph.shape or not spec.shape:
        return True
    if len(graph.shape) != len(spec.shape):
        return False
    pairs = zip(graph.shape, spec.shape, strict=True)
    return all(a == b for a, b in pairs if isinstance(a, int) and isinstance(b, int))


def _configuration(package: Package, checkpoint: Checkpoint) -> Check:
    """Scheduler and tokenizers: what decides over a picture beside the graphs."""
    ours, theirs = package.scheduler_config, checkpoint.scheduler_config
    common = [key for key in ours if key in theirs and not key.startswith("_diffusers")]
    differs = [f"scheduler {key}" for key in common if ours[key] != theirs[key]]
    for part in checkpoint.text_encoders:
        where = tokenizer_folder(part)
        of_source = ClipTokenizer.from_folder(checkpoint.folder / where, error=CheckpointError)
        if _words(package.tokenizer(part)) != _words(of_source):
            differs.append(where)
    note = f"differs: {', '.join(differs)}" if differs else ""
    return Check("configuration", "files", float(len(differs)), None, 1e-9, note, "files")


def _words(tokenizer: ClipTokenizer) -> tuple[Any, ...]:
    """All that a tokenizer knows: every word, how they are cut, and what frames a row."""
    words = [tokenizer.decode([number]) for number in range(tokenizer.vocab_size)]
    ids = tokenizer.encode(" ".join([_WORDS, *words]))
    return words, ids, tokenizer([""]).tolist()
