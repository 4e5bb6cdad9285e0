"""Every file that is read from a package is listed in its manifest, with a hash, once."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdexport import Package, PackageError, load_pipeline, verify
from sdexport.demo_model import PACKAGE_DIR
from sdexport.runtime.packages.unfinished import UNFINISHED
from tests.helpers.changed_package import accept_files, edit_manifest, edit_manifest_text
from tests.helpers.hub_cache import cached_snapshot

FILES = sorted(f.relative_to(PACKAGE_DIR).as_posix() for f in PACKAGE_DIR.rglob("*.*"))
HASH = "0" * 64
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs links and pipes")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(PACKAGE_DIR, tmp_path / "package")


def rejected(folder: Path, *, verify: bool = False) -> str:
    """The message with which a package is rejected: one line, that names the folder."""
    with pytest.raises(PackageError) as error:
        Package.load(folder, verify=verify)
    message = str(error.value)
    assert "\n" not in message and str(folder) in message
    return message.replace(str(folder), "PACKAGE")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(components={}), "lists no text_encoder/model.onnx"),
        (lambda m: m["components"].pop("vae_encoder"), "lists no vae_encoder/model.onnx"),
        (lambda m: m.update(family="stable-diffusion-xl"), "lists no text_encoder_2/model.onnx"),
        (lambda m: m.update(files=[]), "lists no model_index.json"),
        (lambda m: m["files"].pop(), "lists no vae_encoder/config.json"),
        (lambda m: m["files"].append(m["files"][0]), "lists model_index.json twice"),
        (
            lambda m: m["files"].append(m["files"][0] | {"path": "MODEL_INDEX.json"}),
            "lists MODEL_INDEX.json twice, also as model_index.json",
        ),
        (lambda m: m["files"][0].update(sha256=""), "gives model_index.json no size and SHA-256"),
        (lambda m: m["files"][0].update(sha256=HASH[1:] + "A"), "no size and SHA-256"),
        (lambda m: m["files"][0].update(size=-1), "no size and SHA-256"),
        (lambda m: m["files"][0].update(size=True), "in a form that sdexport does not write"),
        (lambda m: m["files"][0].update(size="523"), "in a form that sdexport does not write"),
        (
            lambda m: m["components"]["unet"]["files"].append(m["files"].pop()),
            "lists vae_encoder/config.json as a file of unet",
        ),
        (
            lambda m: m.update(files=[r for r in m["files"] if "unet.npz" not in r["path"]]),
            "lists no reference/unet.npz",
        ),
        (
            lambda m: m.update(files=[r for r in m["files"] if "vocab" not in r["path"]]),
            "lists no tokenizer/vocab.json",
        ),
    ],
)
def test_manifest_that_leaves_something_out(
    folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit_manifest(folder, change)
    assert message in rejected(folder)


@pytest.mark.parametrize(
    "path", ["./a", "a//b", "a/", "a. /b", "", "a\nb", "unet/model.onnx.", ".", "\x1b[2J"]
)
def test_manifest_with_paths_of_no_plain_form(folder: Path, path: str) -> None:
    record = {"path": path, "size": 1, "sha256": HASH}
    edit_manifest(folder, lambda m: m["files"].append(record))
    assert "which is no plain path" in rejected(folder)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"components": {', '"components": {}, "components": {'),
        ('"size": 523', '"size": 1, "size": 523'),
        ('"digest": ', '"digest": "", "digest": '),
    ],
)
def test_manifest_with_a_key_twice(folder: Path, old: str, new: str) -> None:
    edit_manifest_text(folder, old, new)
    assert "is there twice" in rejected(folder)


@pytest.mark.parametrize(
    "name",
    [
        "unet/notes.txt",
        "unet/.hidden.json",
        "vae_decoder/model.onnx_data",
        "reference/further.npz",
        "tokenizer/added_tokens.json",
        "tokenizer/tokenizer.json",
        "tokenizer_2/vocab.json",
        "scheduler/old.json",
        "text_encoder_2/model.onnx",
        "UNET/model.onnx",
        "Model_Index.json",
        "unet/further/model.onnx",
    ],
)
@pytest.mark.parametrize("kind", ["file", "folder", "link", "dangling link", "pipe"])
def test_what_is_not_listed_is_rejected(folder: Path, name: str, kind: str) -> None:
    if sys.platform == "win32" and kind not in ("file", "folder"):
        pytest.skip("needs links and pipes")
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    make: dict[str, Callable[[], object]] = {
        "file": lambda: path.write_text("{}"),
        "folder": path.mkdir,
        "link": lambda: path.symlink_to(folder / "model_index.json"),
        "dangling link": lambda: path.symlink_to("nowhere"),
        "pipe": lambda: os.mkfifo(path),
    }
    make[kind]()
    listed = name.rpartition("/")[0] if name.count("/") > 1 or name[:2] == "UN" else name
    assert rejected(folder) == f"PACKAGE: {listed} is not listed in sdexport.json"


def test_what_is_never_read_may_be_there(folder: Path) -> None:
    for name in ("README.md", "unet/.DS_Store", ".gitattributes", ".cache/huggingface/x", "a/b.c"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    assert Package.load(folder).kind == "package"


@posix
@pytest.mark.parametrize("kind", ["pipe", "endless device", "link to a file", "folder"])
def test_nothing_but_a_file_is_opened(folder: Path, kind: str) -> None:
    """In place of every file: one line within a second, whatever it is."""
    elsewhere = folder.with_name("elsewhere")
    for name in FILES:
        path = folder / name
        path.rename(elsewhere)
        make: dict[str, Callable[[], object]] = {
            "pipe": lambda path=path: os.mkfifo(path),
            "endless device": lambda path=path: path.symlink_to("/dev/zero"),
            "link to a file": lambda path=path: path.symlink_to(elsewhere),
            "folder": path.mkdir,
        }
        make[kind]()
        start = time.monotonic()
        assert name in rejected(folder)
        assert time.monotonic() - start < 1
        path.rmdir() if kind == "folder" else path.unlink()
        elsewhere.rename(path)
    Package.load(folder)


@posix
@pytest.mark.parametrize("name", ["unet", "tokenizer", "reference", "scheduler"])
def test_folders_in_a_package_are_no_links(folder: Path, name: str) -> None:
    elsewhere = (folder / name).rename(folder.with_name("elsewhere"))
    (folder / name).symlink_to(elsewhere, target_is_directory=True)
    assert "link" in rejected(folder)


@posix
def test_folder_may_be_given_as_a_link(folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(folder, target_is_directory=True)
    assert Package.load(link).hashes_checked


@posix
@pytest.mark.parametrize("subfolder", ["", "fp16/package"])
def test_snapshot_of_a_hub_cache_loads(tmp_path: Path, subfolder: str) -> None:
    folder = cached_snapshot(PACKAGE_DIR, tmp_path, subfolder=subfolder)
    assert Package.load(folder).hashes_checked
    with load_pipeline(folder) as pipeline:
        assert pipeline("a red circle", num_inference_steps=1, seed=0).images[0].size == (128, 128)
    if not subfolder:
        assert [check for check in verify(folder) if not check.passed] == []


@posix
@pytest.mark.parametrize("target", ["/etc/hostname", "../../../../outside", "../model_index.json"])
def test_snapshot_with_a_link_elsewhere_is_rejected(tmp_path: Path, target: str) -> None:
    folder = cached_snapshot(PACKAGE_DIR, tmp_path)
    (tmp_path / "outside").write_text("{}")
    path = folder / "unet" / "config.json"
    path.unlink()
    path.symlink_to(target)
    assert "unet/config.json is a link" in rejected(folder)


@posix
def test_snapshot_without_manifest_is_rejected(tmp_path: Path) -> None:
    folder = cached_snapshot(PACKAGE_DIR, tmp_path)
    (folder / "sdexport.json").unlink()
    assert "sdexport.json is missing" in rejected(folder)


def test_marker_in_the_folder_above_counts(folder: Path) -> None:
    (folder.parent / UNFINISHED).touch()
    assert "is an unfinished export" in rejected(folder)


def test_references_may_be_left_out_together(folder: Path) -> None:
    shutil.rmtree(folder / "reference")

    def forget(manifest: dict[str, Any]) -> None:
        manifest["files"] = [r for r in manifest["files"] if "reference" not in r["path"]]

    edit_manifest(folder, forget)
    accept_files(folder)
    assert Package.load(folder).kind == "package"
