"""Which adapters a pipeline opens, what it requires of them, and how long they stay open."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdexport import (
    ControlNet,
    InvalidArgumentError,
    IPAdapter,
    Package,
    PackageError,
    Pipeline,
    T2IAdapter,
    load_pipeline,
)
from sdexport.runtime.adapters.adapter_sessions import AdapterSessions
from sdexport.runtime.adapters.adapter_store import MOST_IDLE, AdapterStore
from sdexport.runtime.models.components import AdapterKind
from sdexport.runtime.packages.minisign import SecretKey
from sdexport.runtime.packages.signature import sign_package
from sdexport.runtime.packages.trust import SIGNED
from tests.helpers.control_nets import control_image

CALL: dict[str, Any] = {"num_inference_steps": 1, "seed": 3, "height": 64, "width": 64}
IMAGE = control_image(64, 64)
NET = AdapterKind.CONTROLNET


@pytest.fixture
def nets(control_folder: Path, tmp_path: Path) -> list[Path]:
    """Folders of more ControlNets than stay open."""
    folders = [tmp_path / f"net-{i}" for i in range(2 * MOST_IDLE + 2)]
    for folder in folders:
        shutil.copytree(control_folder / "first", folder)
    return folders


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the packages whose sessions were closed."""
    names: list[str] = []
    close = AdapterSessions.close

    def note(self: AdapterSessions) -> None:
        names.append(self.package.folder.name)
        close(self)

    monkeypatch.setattr(AdapterSessions, "close", note)
    return names


@pytest.fixture
def store(lora_package: Path) -> Iterator[AdapterStore]:
    with AdapterStore(Package.load(lora_package), "onnxruntime", {}) as opened:
        yield opened


def use(store: AdapterStore, *folders: Path) -> None:
    """What a call does that uses these adapters."""
    opened = [store.open(each, NET) for each in folders]
    store.close_others()
    for each in opened:
        each.release()


def test_all_adapters_of_the_last_call_stay_open(
    store: AdapterStore, nets: list[Path], closed: list[str]
) -> None:
    many, others = nets[: MOST_IDLE + 1], nets[MOST_IDLE + 1 :]
    for _ in range(2):
        use(store, *many)
        use(store, *many, many[0])
    assert closed == [] and not store._users
    use(store, others[0])
    assert closed == [many[1].name]  # of the others many[0] was opened last
    use(store, *others)
    assert closed == [many[1].name]
    assert len(store._open) == len(others) + MOST_IDLE


@pytest.mark.parametrize("options", [{"low_memory": True}, {"images": 1}], ids=str)
def test_released_adapters_are_closed_where_memory_counts(
    lora_package: Path, nets: list[Path], closed: list[str], options: dict[str, Any]
) -> None:
    with AdapterStore(Package.load(lora_package), "onnxruntime", {}, **options) as store:
        opened = [store.open(nets[0], NET) for _ in range(2)]
        opened[0].release()
        assert closed == []
        opened[1].release()
        assert closed == [nets[0].name] and not store._open


def test_an_open_adapter_is_not_taken_for_another_kind(
    store: AdapterStore, control_folder: Path
) -> None:
    for source in (control_folder / "first", Package.load(control_folder / "first")):
        store.open(source, NET)
        with pytest.raises(InvalidArgumentError, match="ControlNets, not of T2I-Adapters"):
            store.open(source, AdapterKind.T2I_ADAPTER)


@pytest.mark.parametrize(
    ("required", "given", "missing"),
    [
        ({}, {"verify": False}, "verify"),
        ({"verify_hashes": True}, {}, "verify_hashes"),
        ({"trust": SIGNED}, {}, "trust, verify_hashes"),
    ],
)
def test_a_package_meets_what_the_pipeline_requires(
    lora_package: Path,
    control_folder: Path,
    required: dict[str, Any],
    given: dict[str, Any],
    missing: str,
) -> None:
    folder = control_folder / "first"
    with load_pipeline(lora_package, **required) as pipe:
        net = ControlNet(Package.load(folder, **given), IMAGE)
        with pytest.raises(PackageError, match=rf"the pipeline requires \({missing}\); give its"):
            pipe("a", **CALL, controlnets=[net])
        for enough in (folder, Package.load(folder, **required)):
            assert pipe._adapters.open(enough, NET).package.folder == folder


def test_a_package_is_signed_with_the_key_of_the_pipeline(
    lora_package: Path, control_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("cryptography", reason="the extra sdexport[sign] is not installed")
    key, other = SecretKey.generate(), SecretKey.generate()
    model = signed(lora_package, tmp_path / "model", key)
    ours = signed(control_folder / "first", tmp_path / "ours", key)
    theirs = signed(control_folder / "first", tmp_path / "theirs", other)
    with load_pipeline(model, trusted_key=key.public) as pipe:
        for package, message in (
            (
                Package.load(ours),
                r"requires \(trusted_key, verify_hashes\)",
            ),
            (Package.load(theirs, trusted_key=other.public), r"requires \(trusted_key\)"),
            (theirs, "signed"),
        ):
            with pytest.raises(PackageError, match=message):
                pipe("a", **CALL, controlnets=[ControlNet(package, IMAGE)])
        given = Package.load(ours, trusted_key=key.public)
        for enough in (ours, given):
            assert pipe._adapters.open(enough, NET).package.signature == given.signature


def signed(package: Path, copy: Path, key: SecretKey) -> Path:
    shutil.copytree(package, copy)
    sign_package(Package.load(copy), key)
    return copy


def test_no_image_is_returned_if_a_file_of_an_adapter_was_altered(
    lora_package: Path, control_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = Package.check_hashes

    def altered(self: Package, graph: str | None = None) -> None:
        if graph is None and self.manifest.is_adapter:
            raise PackageError("altered")
        check(self, graph)

    monkeypatch.setattr(Package, "check_hashes", altered)
    with load_pipeline(lora_package) as pipe:
        pipe("a", **CALL)
        with pytest.raises(PackageError, match="altered"):
            pipe("a", **CALL, controlnets=[ControlNet(control_folder / "first", IMAGE)])


@pytest.mark.parametrize("options", [{"low_memory": True}, {"expected_images": 1}], ids=str)
def test_what_runs_once_is_closed_before_the_steps(
    image_adapters: Path, options: dict[str, Any]
) -> None:
    """And the image stays the same."""

    def generate(pipe: Pipeline, **further: Any) -> Any:
        return pipe(
            "a",
            t2i_adapters=[T2IAdapter(image_adapters / "t2i", IMAGE)],
            ip_adapters=[IPAdapter(image_adapters / "base", IMAGE)],
            output_type="np",
            **CALL,
            **further,
        ).images

    in_steps: list[int] = []
    with load_pipeline(image_adapters / "package") as pipe:
        expected = generate(pipe)
    with load_pipeline(image_adapters / "package", **options) as pipe:
        found = generate(pipe, on_step=lambda step: in_steps.append(len(pipe._adapters._open)))
    assert in_steps == [0] and np.array_equal(found, expected)


def test_control_images_are_embedded_before_the_steps(
    lora_package: Path, control_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one image expected, the graph for them is then closed."""
    finished: list[str] = []
    monkeypatch.setattr(AdapterSessions, "finish", lambda self, name: finished.append(name))
    with load_pipeline(lora_package, expected_images=1) as pipe:
        net = ControlNet(control_folder / "first", IMAGE)
        pipe("a", **CALL, controlnets=[net], on_step=lambda step: finished.append("step"))
    assert finished == ["control_embedding", "step"]
