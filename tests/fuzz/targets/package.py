"""A package: any of its files changed, with hashes that agree, loaded and asked for everything.

The base is a small folder in Optimum's layout with a manifest. An input whose first file is "-"
has no manifest, as a folder of Optimum.
"""

from __future__ import annotations

import contextlib
import random
import shutil
from pathlib import Path

from sdexport import Package
from sdexport.engines.errors import InvalidArgumentError, PackageError
from sdexport.engines.files import sha256_of
from sdexport.engines.onnx_file.graph_specs import graph_specs
from sdexport.runtime import schedulers
from sdexport.runtime.packages.manifest import (
    MANIFEST,
    ComponentRecord,
    FileRecord,
    Manifest,
    read_manifest,
)
from sdexport.runtime.packages.trust import SIGNED, Trust
from sdexport.runtime.scheduler_argument import default_scheduler
from sdexport.runtime.schedulers.create import known_keys
from tests.fuzz import mutators
from tests.fuzz.harness import Target
from tests.fuzz.targets import scheduler_config, tokenizer
from tests.helpers.changed_package import accept_files, edit_manifest
from tests.helpers.optimum_folder import write_optimum_folder

OPTIMUM = "-"
COMPONENTS = ("text_encoder", "text_encoder_2", "unet", "vae_decoder", "vae_encoder")
_base: dict[str, bytes] = {}
_changed: set[str] = set()


def prepare(folder: Path) -> None:
    _base.clear()
    _changed.clear()
    package = write_small_package(folder / "package")
    for path in sorted(package.rglob("*")):
        if path.is_file():
            _base[path.relative_to(package).as_posix()] = path.read_bytes()
    known_keys()  # imports every scheduler


def write_small_package(package: Path) -> Path:
    """A package of SDXL whose graphs are a few nodes."""
    write_optimum_folder(package)
    for name in ("tokenizer", "tokenizer_2"):
        shutil.rmtree(package / name)
        (package / name).mkdir()
        for file in ("vocab.json", "merges.txt", "tokenizer_config.json"):
            (package / name / file).write_bytes(tokenizer.FILES[file])

    def record(path: Path) -> FileRecord:
        name = path.relative_to(package).as_posix()
        return FileRecord(name, path.stat().st_size, sha256_of(path))

    def component(name: str) -> ComponentRecord:
        model = package / name / "model.onnx"
        return ComponentRecord((record(model),), "fp32", 18, *graph_specs(model))

    others = [p for p in sorted(package.rglob("*")) if p.is_file() and p.suffix != ".onnx"]
    manifest = Manifest(
        family="stable-diffusion-xl",
        source={"type": "folder"},
        latent_channels=4,
        downscale=8,
        scaling_factor=0.13025,
        default_size=(64, 64),
        prediction_type="epsilon",
        components={name: component(name) for name in COMPONENTS},
        files=tuple(map(record, others)),
        tools={"torch": "2.13"},
        verification={"unet.out_sample": {"max_abs": 1e-6}},
        verified_with="onnxruntime",
    )
    (package / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    read_manifest(package)
    return package


def write(folder: Path, data: bytes) -> None:
    package = folder / "package"
    for name in _changed:
        (package / name).write_bytes(_base[name])
    found = mutators.split(data)
    names = [name for name in found if name in _base]
    _changed.clear()
    _changed.update(names, [MANIFEST])
    for name in names:
        (package / name).write_bytes(found[name])
    if OPTIMUM in found:
        (package / MANIFEST).unlink()
    elif MANIFEST not in names:
        accept_files(package, *names)
    elif isinstance(mutators.parsed(found[MANIFEST]), dict):
        with contextlib.suppress(ValueError, RecursionError):  # what has no digest
            edit_manifest(package, lambda manifest: None)


def run(folder: Path, data: bytes) -> None:
    package = Package.load(folder / "package")
    with contextlib.suppress(PackageError):
        Trust(None, SIGNED).check_graphs(package.surveys, package.graphs)
    errors = []
    try:
        config = package.scheduler_config
        schedulers.create(default_scheduler(config), config, 4)
    except InvalidArgumentError as error:
        errors.append(error)
    for graph in package.graphs:
        package.model_path(graph)
    for name in package.manifest.components:
        package.config(name)
        if name.startswith("text_encoder"):
            package.tokenizer(name)("a red <cat>")
    package.manifest.to_json()
    if errors:
        raise errors[0]


WORDS = (
    *(
        "format_version",
        "components",
        "files",
        "path",
        "size",
        "sha256",
        "inputs",
        "outputs",
        "name",
    ),
    *("shape", "dtype", "nodes", "opset", "precision", "preview", "latents_mean", "latents_std"),
    *("verification", "default_size", "scaling_factor", "latent_channels", "downscale", "family"),
    *(
        "stable-diffusion",
        "stable-diffusion-xl",
        "unet",
        "unet/model.onnx",
        "unet/../unet/model.onnx",
    ),
    *(
        "./unet/model.onnx",
        "UNET/model.onnx",
        "unet//model.onnx",
        "sdexport.json",
        "block_out_channels",
    ),
    *("sample_size", "in_channels", "time_cond_proj_dim", "attention_head_dim", "_class_name"),
    *("force_zeros_for_empty_prompt", "requires_aesthetics_score", "num_hidden_layers", [64, 64]),
    *scheduler_config.WORDS[:20],
)
_FILES: dict[str, bytes] = {}


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Any files of the base."""
    if not _FILES:
        _FILES.update({OPTIMUM: b""}, **_base)
    return _mutate(data, rng)


_mutate = mutators.files(
    _FILES,
    {
        ".json": mutators.json_text((*WORDS, *tokenizer.WORDS)),
        ".txt": mutators.text(("#version", "\n", " ", "r e", "re d</w>")),
        ".onnx": mutators.protobuf,
    },
)
TARGET = Target(
    "package",
    run,
    names=("package", *scheduler_config.TARGET.names),
    prepare=prepare,
    write=write,
    mutate=mutate,
    errors=(PackageError, InvalidArgumentError),
    longest=16_384,
)
