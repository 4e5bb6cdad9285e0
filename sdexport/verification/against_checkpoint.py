"""Comparing a package with its checkpoint: PyTorch and the graphs run on the same random inputs.

Unlike the recorded reference outputs, this needs PyTorch and the checkpoint. The inputs are new
each time and of several sizes, which shows an axis that is not dynamic after all.
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
from sdexport.engines import TensorSpec
from sdexport.engines.errors import CheckpointError, InvalidArgumentError
from sdexport.engines.onnx_file.graph_specs import graph_specs
from sdexport.engines.session import Feeds
from sdexport.graphs.wrappers import Part, parts
from sdexport.runtime.component_backends import Backends
from sdexport.runtime.component_sessions import ComponentSessions
from sdexport.runtime.models.components import Role
from sdexport.runtime.packages.package import Package
from sdexport.runtime.text.tokenizer import ClipTokenizer
from sdexport.verification.comparison import FAILURES, compare_outputs, failed_check
from sdexport.verification.limits import Arithmetics, Limits, ceilings
from sdexport.verification.reference import TorchSession
from sdexport.verification.report import Check, Measure
from sdexport.verification.verifier import Progress

LARGEST_LATENTS = 32
"""Largest height and width of latents: enough to show a mistake, and small in memory."""
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
    """Compare every component with the checkpoint's module, one at a time in memory.

    Args:
      source, revision, options: the checkpoint as it was exported; see sources.py.
      seed: of the random inputs, 0 or more.
      progress: called with each component as it begins.
    Returns: one row for the configuration, and one for each component, input size and output.
    Raises: FileNotFoundError, CheckpointError, ConnectionError: see open_source.
      InvalidArgumentError: `seed` is negative; an adapter; a checkpoint of another family or size.
    """
    if seed < 0:
        raise InvalidArgumentError(f"seed must be 0 or more, got {seed}")
    if package.manifest.is_adapter:
        raise InvalidArgumentError(
            f"{package.folder} is the package of a {package.manifest.family}; only models are "
            "compared with their checkpoint, so leave --against out or export it again"
        )
    checkpoint = open_source(source, revision=revision, options=options)
    every = _compared(package, parts(checkpoint.configs))
    _check_matches(package, checkpoint, every)
    checks = [_configuration(package, checkpoint)]
    rng = np.random.default_rng(seed)
    denoiser = checkpoint.family.with_role(Role.DENOISER)
    levels = len(checkpoint.configs[denoiser.source].block_out_channels)
    step = 1 if package.manifest.files else 2 ** (levels - 1)  # Optimum's graphs need even latents
    runs = Arithmetics(package, backend, session_options)
    loaded: tuple[str, Any] = ("", None)
    for part in every:
        progress(part.name)
        limits = ceilings(runs.of_graph(part.name))
        config = checkpoint.configs[part.source]
        trials = _sizes(part, checkpoint, step)
        feeds = [_feeds(part, sizes, config, rng) for sizes in trials]
        if loaded[0] != part.source:
            loaded = (part.source, checkpoint.load(part.source))
        with TorchSession(part, loaded[1]) as session:
            references = [session.run(each) for each in feeds]
        if part.role is not Role.VAE_DECODER:  # the encoder is in the same module
            loaded = ("", None)
        with closing(
            ComponentSessions(package, backend, session_options, {}, low_memory=True)
        ) as graphs:
            for each, expected in zip(feeds, references, strict=True):
                checks += _compare(graphs, package, part, each, expected, limits)
    return checks


def _compared(package: Package, every: Iterable[Part]) -> tuple[Part, ...]:
    """The parts of the checkpoint without optional ones that the package does not hold."""
    held = package.manifest.components
    return tuple(part for part in every if not part.component.optional or part.name in held)


def _sizes(part: Part, checkpoint: Checkpoint, step: int) -> list[dict[str, int]]:
    """The named dimensions of each trial: usual sizes, odd sizes, and a batch of eight.

    Args:
      step: what the latents' height and width must be multiples of.
    """
    unit = checkpoint.downscale
    length = checkpoint.configs[checkpoint.text_encoders[0]].max_position_embeddings
    height, width = (min(side, LARGEST_LATENTS) for side in checkpoint.sample_size)
    is_text = part.role is Role.TEXT_ENCODER
    lengths = (length, length // 4 if is_text else 2 * length, length)
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
    graphs: ComponentSessions,
    package: Package,
    part: Part,
    feeds: Feeds,
    expected: Feeds,
    limits: Limits,
) -> list[Check]:
    sizes = _sizes_of(feeds)
    inputs, outputs = graph_specs(package.model_path(part.name))
    if unknown := [spec.name for spec in inputs if spec.name not in feeds]:
        return [failed_check(part.name, f"unknown input {unknown[0]}", inputs=sizes)]
    try:
        actual = graphs.run(part.name, {s.name: _fitted(feeds[s.name], s) for s in inputs})
    except FAILURES as error:
        return [failed_check(part.name, str(error), inputs=sizes)]
    present = {spec.name for spec in outputs} | part.component.outputs
    wanted = {name: value for name, value in expected.items() if name in present}
    return compare_outputs(part.name, wanted, actual, limits, inputs=sizes)


def _fitted(value: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """An input as Optimum's graphs take it: a scalar timestep, ids of another integer type."""
    shaped = value.reshape(()) if not spec.shape and value.size == 1 else value
    return shaped.astype(spec.dtype, copy=False)


def _sizes_of(feeds: Feeds) -> str:
    """The sizes of the first input, and the length of the text."""
    first, *_ = feeds.values()
    text = feeds.get("encoder_hidden_states")
    tokens = "" if text is None else f", {text.shape[1]} tokens"
    return "x".join(map(str, first.shape)) + tokens


def _check_matches(package: Package, checkpoint: Checkpoint, every: Iterable[Part]) -> None:
    """Raise InvalidArgumentError if the package cannot have been exported from the checkpoint."""
    present, wanted = package.manifest.components, {part.name: part for part in every}
    advice = "give the checkpoint, and the options, that the package was exported with"
    if set(present) != set(wanted) or package.manifest.family != checkpoint.family.name:
        raise InvalidArgumentError(
            f"{checkpoint.label} is {checkpoint.family.name}, {package.folder} is "
            f"{package.manifest.family} ({', '.join(present)}); {advice}"
        )
    for name, part in wanted.items():
        found = {s.name: s for specs in graph_specs(package.model_path(name)) for s in specs}
        needed = (*part.inputs, *(s for s in part.outputs if s.name in part.component.outputs))
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
    """Compare scheduler and tokenizers, which also determine an image."""
    ours, theirs = package.scheduler_config, checkpoint.scheduler_config
    common = [key for key in ours if key in theirs and not key.startswith("_diffusers")]
    differs = [f"scheduler {key}" for key in common if ours[key] != theirs[key]]
    for part in checkpoint.text_encoders:
        where = tokenizer_folder(part)
        expected = ClipTokenizer.from_folder(checkpoint.folder / where, error=CheckpointError)
        if _words(package.tokenizer(part)) != _words(expected):
            differs.append(where)
    note = f"differs: {', '.join(differs)}" if differs else ""
    return Check(
        "configuration", "files", (Measure("altered_files", float(len(differs)), 0.0),), note
    )


def _words(tokenizer: ClipTokenizer) -> tuple[Any, ...]:
    """Everything a tokenizer does: every word, how text is split, and how a row is padded."""
    words = [tokenizer.decode([number]) for number in range(tokenizer.vocab_size)]
    ids = tokenizer.encode(" ".join([_WORDS, *words]))
    return words, ids, tokenizer([""]).tolist()
