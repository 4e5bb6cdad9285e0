"""The code in README and docs runs; links, tables and file lists are true.

Every bash and python block of a page runs in order, in a folder that holds the packages and LoRAs
that `sdexport demo` leaves there. A block below `<!-- not run: reason -->` is left out, and
counted.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import docs_tables
from sdexport.runtime import schedulers
from sdexport.runtime.schedulers.schedule_names import find_schedule
from tests.helpers import scheduler_names_page
from tests.helpers.page_blocks import DEMO, DOCS, PICTURES, ROOT, ROWS, SHOWN_ONLY, blocks
from tests.helpers.page_pictures import save_row
from tests.tolerances import DOCS_IMAGE_MEAN

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
OWN_TEST = ("experiments.md",)
"""Pages whose blocks another test runs."""
NOT_RUN = {
    "README.md": 2,
    "CONTRIBUTING.md": 1,
    "automatic1111-api.md": 1,
    "backends.md": 6,
    "coming-from-automatic1111.md": 1,
    "control-images.md": 2,
    "embedding.md": 5,
    "export.md": 2,
    "getting-started.md": 4,
    "gpu-benchmark.md": 2,
    "controlnet.md": 7,
    "ip-adapter.md": 2,
    "lora.md": 2,
    "openai-api.md": 1,
    "performance.md": 2,
    "ray.md": 2,
    "server.md": 3,
    "server-page.md": 1,
    "signing.md": 5,
    "t2i-adapter.md": 2,
    "triton.md": 2,
    "verification.md": 1,
}
"""How many blocks of a page carry the marker."""
GENERATED = ("api.md", "cli.md", "contributing.md")
"""Pages whose headings exist only in the built site, where `mkdocs build --strict` checks them."""
MAX_BYTES = 1_500_000


def runnable(page: Path) -> bool:
    return page.name not in OWN_TEST and any(block.runs for block in blocks(page))


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the demo's files, and with `sdexport` and `python` on the path."""
    folder, programs = tmp_path / "scratch", tmp_path / "bin"
    for name, source in DEMO.items():
        shutil.copytree(source, folder / "sdexport-demo" / name)
    programs.mkdir()
    for name, arguments in (("sdexport", "-m sdexport"), ("python", "")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.skipif(sys.platform == "win32", reason="the blocks are written for bash")
@pytest.mark.parametrize("page", [p for p in PAGES if runnable(p)], ids=lambda page: page.name)
def test_code_blocks_run_in_order(page: Path, scratch: Path) -> None:
    if page.name == "README.md":
        shutil.rmtree(scratch / "sdexport-demo")  # here `sdexport demo` makes it
    names: dict[str, object] = {"__name__": "__docs__"}
    for block in blocks(page):
        where = f"{page.name}, line {block.line}"
        if block.runs and block.language == "bash":
            run_bash(block.code, where)
        elif block.runs:
            code = compile("\n" * (block.line - 1) + block.code, page.name, "exec")
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(code, names)
            if block.printed is not None:
                assert printed.getvalue() == block.printed, where
    picture = page.with_suffix(".png").name
    if picture in PICTURES:
        check_same_picture(DOCS / picture, Path(picture))
    row = page.with_suffix(".webp").name
    if row in ROWS:
        save_row(row)
        check_same_picture(DOCS / row, Path(row))


def run_bash(code: str, where: str) -> None:
    lines = code.splitlines()
    if Path("sdexport-demo").exists():  # `sdexport demo` would not replace it
        lines = [line for line in lines if line.split("#")[0].strip() != "sdexport demo"]
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(lines)], capture_output=True, text=True
    )
    assert done.returncode == 0, f"{where}: {done.stderr[-2000:]}{done.stdout[-1000:]}"


def test_blocks_are_run_or_marked() -> None:
    found: dict[str, int] = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"^[ >]+```", text, re.MULTILINE), f"{page.name}: indented block"
        assert len(re.findall(r"^```", text, re.MULTILINE)) % 2 == 0, page.name
        for block in blocks(page):
            known = {"bash", "python", *SHOWN_ONLY}
            assert block.language in known, f"{page.name}, line {block.line}: {block.language!r}"
        markers = re.findall(r"^<!-- not run: \S[^\n]+ -->\n(```)?", text, re.MULTILINE)
        assert all(markers), f"{page.name}: a marker that is not right above a block"
        if markers:
            found[page.name] = len(markers)
    assert found == NOT_RUN


def test_readme_is_short_and_its_links_lead_to_files() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    links = re.findall(r"\]\(([^)]+)\)", text)  # setup.py makes them absolute for the index page
    inside = [link for link in links if not link.startswith("https://")]
    assert (
        inside and [link for link in inside if not (ROOT / link.partition("#")[0]).is_file()] == []
    )


def test_links_between_pages_lead_to_files_and_headings() -> None:
    anchors = {page.name: set(map(slug, headings(page))) for page in PAGES}
    for page in DOCS.glob("*.md"):
        for link in re.findall(r"\]\(([^)#\s]*)(#[^)\s]+)?\)", page.read_text(encoding="utf-8")):
            target, anchor = link[0] or page.name, link[1].removeprefix("#")
            if target.startswith(("http://", "https://")):
                continue
            assert (page.parent / target).is_file(), f"{page.name}: {target}"
            if anchor and target not in GENERATED:
                assert anchor in anchors[target], f"{page.name}: {target}#{anchor}"


def headings(page: Path) -> list[str]:
    return re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and MkDocs make it."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def test_tables_are_what_the_reports_give() -> None:
    for page, text in docs_tables.filled().items():
        assert page.read_text(encoding="utf-8") == text, f"{page.name}: run {docs_tables.COMMAND}"


def test_scheduler_names_page_is_what_the_tables_give() -> None:
    text = scheduler_names_page.PAGE.read_text(encoding="utf-8")
    assert text == scheduler_names_page.page(), f"run {scheduler_names_page.COMMAND}"


def test_scheduler_names_in_pages_are_known() -> None:
    for page in DOCS.glob("coming-from-*.md"):
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"""--scheduler ("[^"]+"|[\w+]+)""", text):
            assert schedulers.canonical_name(name.strip('"')), f"{page.name}: {name}"
        for name in re.findall(r"--schedule ([\w]+)", text):
            assert find_schedule(name), f"{page.name}: {name}"


def test_schedulers_page_has_every_name_and_alias() -> None:
    text = (DOCS / "schedulers.md").read_text(encoding="utf-8")
    for name in (*schedulers.NAMES, *schedulers.ALIASES):
        assert f"\n| `{name}` | " in text


def test_named_files_exist() -> None:
    folders = "engines|runtime|sdexport|tests|benchmarks|docs"
    count = 0
    for page in (page for page in PAGES if page.name not in ("files.md", "export.md")):
        text = page.read_text(encoding="utf-8")
        for name in re.findall(rf"`((?:{folders})/[\w./-]+)`", text):
            count += 1
            assert (ROOT / name).exists(), f"{page.name}: {name}"
    assert count > 60


@pytest.mark.slow
def test_experiments_page_is_what_its_code_gives(tmp_path: Path) -> None:
    script = runpy.run_path(str(DOCS / "experiments.py"))
    page = (DOCS / "experiments.md").read_text(encoding="utf-8")
    again = script["run"](page, DEMO["package"], tmp_path)
    measured = re.compile(r"\d+\.\d+ s\b")
    assert measured.sub("", again) == measured.sub("", page)
    names = script["images"](page)
    assert len(names) == len(set(names)) > 20
    assert sorted(names) == sorted(f.name for f in (DOCS / "experiments").iterdir())
    assert sum(f.stat().st_size for f in (DOCS / "experiments").iterdir()) < MAX_BYTES
    for name in names:
        made = script["made"](tmp_path, name)
        check_same_picture(DOCS / "experiments" / name, made)


def check_same_picture(kept: Path, new: Path) -> None:
    """Up to the rounding of another processor."""
    a, b = (np.asarray(Image.open(path).convert("RGB"), int) for path in (kept, new))
    assert a.shape == b.shape, kept.name
    assert np.abs(a - b).mean() <= DOCS_IMAGE_MEAN, kept.name
