"""The HTML report: self-contained, escaped, and readable."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from sdexport import verify
from sdexport.cli import main
from sdexport.verification.report import Check, Measure
from sdexport.verification.report_style import STYLE
from sdexport.verification.verification_result import ImagePair, Verification
from sdexport.verification.verifier import REFERENCE_IMAGE
from tests.helpers.changed_package import accept_files, edit_manifest

EVIL = "<script>alert('x')</script>\"&\u202e\x1b[2J"


class _Reader(HTMLParser):
    """Collects tags, and checks that they nest."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words += data


def read(text: str) -> _Reader:
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def an_example(name: str = "model", **images: np.ndarray) -> Verification:
    measured = (Measure("relative_l2", 2e-7, 3e-6), Measure("max_abs", 9e-5, 5e-5))
    checks = (
        Check("unet", "out_sample", measured, file="unet/model.onnx", remark=name),
        Check(name, "files", (), f"altered: {name}"),
        Check("vae_decoder", "sample", measured[:1], way=name, compared_with=name, form="prepared"),
    )
    pair = ImagePair(**images, caption=name) if images else None
    return Verification(checks, (name,), pair, {"package": name, name: name})


def test_every_text_is_escaped() -> None:
    text = an_example(EVIL, reference=np.zeros((4, 4, 3), np.uint8)).html()
    assert "<script" not in text and "\u202e" not in text and "\x1b" not in text
    reader = read(text)
    assert {tag for tag, _ in reader.tags}.isdisjoint({"script", "iframe", "object", "link", "a"})
    assert reader.words.count("<script>alert('x')</script>\"&\\u202e\\x1b[2J") >= 8


def test_texts_of_a_package_are_escaped(package_copy: Path) -> None:
    """Those that an attacker writes: the source, tools, and the prompt of the reference image."""
    path = package_copy / "reference" / f"{REFERENCE_IMAGE}.npz"
    with np.load(path) as data:
        arrays = dict(data)
    np.savez(path, **arrays | {"prompt": np.array(EVIL)})
    accept_files(package_copy)
    edit_manifest(package_copy, lambda data: data["source"].update({EVIL: EVIL}))
    found = verify(package_copy)
    text = found.html()
    assert "<script" not in text and text.count("&lt;script&gt;") >= 3


def test_nothing_is_requested_and_nothing_runs() -> None:
    image = np.zeros((8, 6, 3), np.uint8)
    text = an_example(reference=image, generated=image).html()
    reader = read(text)
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    (policy,) = (
        a["content"] for _, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'"
    )
    assert f"<style>{STYLE}</style>" in text
    for _, attributes in reader.tags:
        assert not {"style", "href", "onload", "onerror"} & attributes.keys()
        assert str(attributes.get("src", "data:")).startswith("data:image/png;base64,") or (
            "src" not in attributes
        )
    assert not re.search(r"https?:|url\(|@import", text)


def test_images_and_their_difference() -> None:
    rng = np.random.default_rng(0)
    reference = rng.integers(0, 250, (8, 6, 3), dtype=np.uint8)
    generated = reference.copy()
    generated[2, 3, 1] += 3
    reader = read(an_example(reference=reference, generated=generated).html())
    images = [attributes for tag, attributes in reader.tags if tag == "img"]
    pixels = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(str(a["src"]).split(",")[1]))))
        for a in images
    ]
    assert all(a["alt"] for a in images) and len(images) == 3
    np.testing.assert_array_equal(pixels[0], reference)
    np.testing.assert_array_equal(pixels[1], generated)
    assert pixels[2][2, 3, 1] == 3 * 64 and pixels[2].sum() == 3 * 64
    assert "largest 3 of 255, in 2.1% of the pixels; shown times 64" in reader.words


def test_report_can_be_read_aloud() -> None:
    reader = read(an_example().html())
    names = [tag for tag, _ in reader.tags]
    assert names.count("h1") == 1 and names.count("main") == 1 and names.count("caption") == 2
    assert dict(reader.tags)["html"] == {"lang": "en"}
    assert all(a.get("scope") == "col" for tag, a in reader.tags if tag == "th")
    assert all(a.get("aria-hidden") == "true" for tag, a in reader.tags if tag == "svg")
    assert "max abs 9e-5 of the limit 5e-5" in reader.words
    assert "relative L2 2e-7 of the limit 3e-6" in reader.words


def test_command_writes_the_report(package: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    result = call("verify", package, "--html", path, "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["passed"] and report["not_checked"] == report["advice"] == []
    words = read(path.read_text(encoding="utf-8")).words
    assert "Passed." in words and report["about"]["digest"] in words
    assert "\u201ca photograph of a red bird on a blue chair\u201d" in words
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/report.html", "there is no folder"),
        ("old.html/report.html", "there is no folder"),
        ("old.html", "exists; use --force to overwrite it"),
        ("pipe", "is not a regular file"),
    ],
)
def test_command_checks_the_file_before_the_work(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    (tmp_path / "old.html").write_text("kept")
    if name == "pipe":
        if not hasattr(os, "mkfifo"):
            pytest.skip("no named pipes here")
        os.mkfifo(tmp_path / "pipe")

    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr("sdexport.runtime.packages.package.Package.load", loaded)
    result = call("verify", package, "--html", tmp_path / name)
    assert result.exit_code == 1 and message in result.stderr
    assert result.stderr.count("\n") == 1 and (tmp_path / "old.html").read_text() == "kept"


def test_command_rejects_a_folder_as_the_report(package: Path, tmp_path: Path) -> None:
    result = call("verify", package, "--html", tmp_path)
    assert result.exit_code == 2 and "is a directory" in result.stderr
