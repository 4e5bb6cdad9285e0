"""Scenarios of whole packages: export, copy, sign."""

from __future__ import annotations

import gc
import shutil
import tempfile
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

from sdexport.demo_model import PACKAGE_DIR
from sdexport.engines.errors import PackageError
from sdexport.runtime.packages.package import Package
from sdexport.runtime.packages.signature import SIGNATURE, check_signature, sign_package
from tests.faults.scenario import NEW, NOTHING, OLD, Action, Scenario, empty

_MARK = "engines/of-the-old-one"


def place_shipped(folder: Path) -> None:
    """A package that differs from a new one by a file in engines/, which has no hash."""
    shutil.copytree(PACKAGE_DIR, folder / "package")
    (folder / "package" / _MARK).parent.mkdir()
    (folder / "package" / _MARK).touch()


def _package_state(folder: Path) -> str:
    """Which package is at folder/package, verified by its hashes; no other folder may load."""
    for other in folder.iterdir():
        if other.name != "package" and other.is_dir():
            for inner in (other, *(p for p in other.iterdir() if p.is_dir())):
                with suppress(PackageError):
                    Package.load(inner)
                    raise AssertionError(f"{inner} loads")
    if not (folder / "package").exists():
        return NOTHING
    package = Package.load(folder / "package")
    if (package.folder / _MARK).exists():
        return OLD
    whole = folder.parent / "digest-without-fault"  # hashes agree with damage done before hashing
    if not whole.exists():
        whole.write_text(package.digest)
    assert package.digest == whole.read_text(), "another package than without a fault"
    return NEW


def _start_copy(*, force: bool) -> Action:
    from sdexport.demo_model import PACKAGE_DIR
    from sdexport.demo_model.demo_run import copy_package

    return lambda folder: copy_package(PACKAGE_DIR, folder / "package", force=force)


def _start_export(*, force: bool) -> Action:
    """An export of a small checkpoint, without what takes time and writes no file.

    Its modules are loaded and traced here, once. Nothing is verified, and no preview is fitted.
    """
    from sdexport import export_steps, exporter
    from sdexport.checkpoints.diffusers_folder import Checkpoint
    from sdexport.graphs import trace
    from sdexport.graphs.wrappers import parts
    from tests.helpers.families import build

    source = build("sd1", Path(tempfile.mkdtemp(prefix="sdexport-faults-")))
    checkpoint = Checkpoint.open(source)
    modules = {name: checkpoint.load(name) for name in checkpoint.configs}
    graphs = {
        part.name: trace._traced(part, modules[part.source], export_steps.DEFAULT_OPSET)
        for part in parts(checkpoint.configs)
    }
    changed: Any = exporter
    of_checkpoint: Any = Checkpoint
    of_checkpoint.load = lambda opened, name: modules[name]
    of_checkpoint.count_weights = lambda opened, name: 0
    changed.free_weights = lambda module: None
    changed.verifying_backend = lambda precision: None
    changed.fit_preview = lambda module, space: ()
    trace._traced = lambda part, module, opset: graphs[part.name]
    gc.freeze()  # else each run looks at every object of PyTorch again
    return lambda folder: exporter.export(source, folder / "package", force=force)


@cache
def _secret(seed: int) -> Any:
    from sdexport.runtime.packages.minisign import SecretKey

    return SecretKey(bytes([seed] * 8), bytes([seed] * 32))


def _sign(seed: int, folder: Path) -> None:
    sign_package(Package.load(folder / "package", verify=False), _secret(seed))


def _place_signed(folder: Path) -> None:
    place_shipped(folder)
    _sign(1, folder)


def _signature_state(folder: Path) -> str:
    package = folder / "package"
    if not (package / SIGNATURE).exists():
        return NOTHING
    manifest = Package.load(package, verify=False).manifest
    for seed, which in ((1, OLD), (2, NEW)):
        with suppress(PackageError):
            check_signature(package, manifest, _secret(seed).public)
            return which
    raise AssertionError("the signature is of neither key")


def package_scenarios() -> dict[str, Scenario]:
    return {
        "copy": Scenario(empty, partial(_start_copy, force=False), _package_state, (NOTHING,)),
        "copy --force": Scenario(place_shipped, partial(_start_copy, force=True), _package_state),
        "sign": Scenario(place_shipped, lambda: partial(_sign, 2), _signature_state, (NOTHING,)),
        "sign again": Scenario(_place_signed, lambda: partial(_sign, 2), _signature_state),
        "export": Scenario(empty, partial(_start_export, force=False), _package_state, (NOTHING,)),
        "export --force": Scenario(
            place_shipped, partial(_start_export, force=True), _package_state
        ),
    }
