"""The wheel and the sdist: what they hold, and that they can be installed and imported anywhere."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

from tests.helpers.distributions import (
    LINKS,
    ROOT,
    Environment,
    build,
    copy_sources,
    run,
    without_checkout,
)

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DEMO = ("package", "controlnet_package", "loras")
NOISE = "sdexport/runtime/noise/_noise"
EDITABLE = [
    ("lenient", True),
    ("lenient", False),
    ("compat", True),  # puts the checkout on the path, so it needs the links
    ("strict", True),
    ("strict", False),
]

IMPORTS = """
import sdexport
import sdexport.cli, sdexport.engines, sdexport.runtime.noise
assert sdexport.load_pipeline and sdexport.open_session and sdexport.schedulers
print(sdexport.__version__, sdexport.__file__, sep="\\n")
"""
# Only what the program's types need is read; the test takes half a minute otherwise.
MYPY_SETTINGS = """
[mypy]
[mypy-torch.*,transformers.*,diffusers.*,onnx.*,onnx_ir.*,scipy.*,safetensors.*,huggingface_hub.*]
follow_imports = skip
"""
USER_PROGRAM = """
import sdexport

with sdexport.load_pipeline("package") as pipe:
    result = pipe("a red circle", seed="three")
    reveal_type(result)
reveal_type(sdexport.open_session)
"""


def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return sorted(name for name in archive.namelist() if ".dist-info/" not in name)


def data_in_wheel() -> set[str]:
    """The server's page, and the demo model's packages and LoRAs without its checkpoint."""
    return {
        path.relative_to(ROOT).as_posix()
        for folder in (*(f"demo_model/{name}" for name in DEMO), "server/page")
        for path in (ROOT / "sdexport" / folder).rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_sources(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def sources_without_links(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_sources(tmp_path_factory.mktemp("checkout"), links=False)


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(sources, tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="module")
def sdist(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(sources, tmp_path_factory.mktemp("sdist"), "sdist")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("installed")).install(wheel)


@pytest.fixture(scope="module")
def mypy_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mypy_cache")


@pytest.fixture
def other_modules(tmp_path: Path) -> Path:
    """A user's folder with modules called runtime and engines, which must not be imported."""
    stop = "raise SystemExit('a module of the user was imported')\n"
    (tmp_path / "user" / "engines").mkdir(parents=True)
    for name in ("runtime.py", "engines/__init__.py", "engines/session.py"):
        (tmp_path / "user" / name).write_text(stop)
    return tmp_path / "user"


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_bytes(archive.read(name))


def check_imports(environment: Environment, cwd: Path, expected: Path | None = None) -> None:
    """All three ways in work from a folder, and use the code below `expected`."""
    version, file = run(environment.python, "-c", IMPORTS, cwd=cwd).split("\n")[:2]
    home = environment.python.parents[1] if expected is None else expected
    assert Path(file).is_relative_to(home)
    for command in ([environment.python, "-m", "sdexport"], [environment.command]):
        assert run(*command, "--version", cwd=cwd).split()[-1] == version


def test_links_are_in_the_repository() -> None:
    for link, target in LINKS.items():
        assert (ROOT / link).readlink().as_posix() == target


def test_wheel_holds_one_top_level_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        top = {name.split("/")[0] for name in archive.namelist()}
    [package] = [name for name in top if not name.endswith(".dist-info")]
    assert package == "sdexport" and len(top) == 2


def test_wheel_holds_every_module_once(wheel: Path) -> None:
    found = names(wheel)
    expected = {
        name
        for folder in ("sdexport", "runtime", "engines")
        for path in (ROOT / folder).rglob("*.py")
        if not (name := path.relative_to(ROOT).as_posix()).startswith(tuple(LINKS))
    }
    expected = {
        name if name.startswith("sdexport/") else f"sdexport/{name}" for name in expected
    } | {"sdexport/py.typed", f"{NOISE}.pyi", *data_in_wheel()}
    assert {name for name in found if not name.endswith((".so", ".pyd"))} == expected
    assert len(found) == len(set(found))


def test_wheel_is_tagged_for_the_stable_abi(wheel: Path) -> None:
    compiled = [name for name in names(wheel) if name.endswith((".so", ".pyd"))]
    if sys.platform == "win32" and not compiled:
        pytest.skip("no compiler")
    assert "-cp311-abi3-" in wheel.name
    assert [name.split(".")[0] for name in compiled] == [NOISE]


@pytest.mark.skipif(sys.platform == "win32", reason="CC is not read there")
def test_wheel_without_compiler_is_for_any_python(
    sources: Path, wheel: Path, tmp_path: Path, other_modules: Path
) -> None:
    source = copy_sources(tmp_path / "source")
    pure = build(source, tmp_path, "wheel", CC="false")
    assert pure.name.endswith("-py3-none-any.whl")
    assert names(pure) == [name for name in names(wheel) if not name.endswith(".so")]
    check_imports(Environment(tmp_path / "venv").install(pure), other_modules)


def test_wheel_is_the_same_without_links(
    sources_without_links: Path, wheel: Path, tmp_path: Path
) -> None:
    assert names(build(sources_without_links, tmp_path, "wheel")) == names(wheel)


def test_sdist_holds_checkpoint_and_builds_the_same_wheel(
    sdist: Path, wheel: Path, tmp_path: Path
) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    [source] = [path for path in tmp_path.iterdir() if path.is_dir()]
    checkpoint = [path.relative_to(source) for path in source.rglob("*.safetensors")]
    demo_model = {("sdexport", "demo_model", name) for name in ("model", "loras")}
    assert {path.parts[:3] for path in checkpoint} == demo_model
    assert (source / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert not any((source / link).exists() for link in LINKS)
    again = build(source, tmp_path / "wheel", "wheel")
    assert again.name == wheel.name and names(again) == names(wheel)


def test_metadata_names_licence_and_home(wheel: Path) -> None:
    found = metadata(wheel)
    assert found["License-Expression"] == "MIT"
    with zipfile.ZipFile(wheel) as archive:
        [licence] = [name for name in archive.namelist() if name.endswith("/LICENSE")]
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
    urls = dict(line.split(", ") for line in found.get_all("Project-URL", []))
    assert urls == PROJECT["urls"] and found["Author"] == "sdexport authors"


def test_index_page_has_absolute_links(wheel: Path) -> None:
    page = str(metadata(wheel).get_payload())
    assert page.startswith("# sdexport")
    links = re.findall(r"\]\(([^)\s]+)|\b(?:src|href)=\"([^\"]+)", page)
    assert links
    assert all(re.match("https://|#", first or second) for first, second in links)
    assert re.search(r"!\[[^\]]*\]\(https://", page)


def test_wheel_is_imported_next_to_modules_of_the_same_names(
    installed: Environment, other_modules: Path
) -> None:
    check_imports(installed, other_modules)


def mypy(environment: Environment, cwd: Path, cache: Path) -> str:
    """What mypy --strict says of a user's program outside of the repository."""
    (cwd / "program.py").write_text(USER_PROGRAM)
    (cwd / "mypy.ini").write_text(MYPY_SETTINGS)
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", environment.python]
    done = subprocess.run(
        [*map(str, command), "--cache-dir", str(cache), "program.py"],
        cwd=cwd,
        env=without_checkout(),
        capture_output=True,
        text=True,
    )
    return done.stdout + done.stderr


def check_types(environment: Environment, cwd: Path, cache: Path) -> None:
    """Mypy finds the one mistake in a user's program, and knows the types."""
    report = mypy(environment, cwd, cache)
    errors = [line for line in report.splitlines() if " error: " in line]
    assert len(errors) == 1, report
    assert 'Argument "seed"' in errors[0] and 'incompatible type "str"' in errors[0]
    assert 'Revealed type is "sdexport.runtime.result.Result"' in report
    assert "-> sdexport.engines.session.Session" in report


def test_types_of_wheel_are_seen_by_another_project(
    installed: Environment, tmp_path: Path, mypy_cache: Path
) -> None:
    check_types(installed, tmp_path, mypy_cache)


@pytest.mark.parametrize(("mode", "links"), EDITABLE)
def test_editable_install(
    mode: str,
    links: bool,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    other_modules: Path,
    mypy_cache: Path,
) -> None:
    source = request.getfixturevalue("sources" if links else "sources_without_links")
    environment = Environment(tmp_path / "venv").install_editable(source, mode)
    check_imports(environment, other_modules, source)
    if mode != "lenient":  # an import hook, which mypy does not see
        check_types(environment, tmp_path, mypy_cache)
