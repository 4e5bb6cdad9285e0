"""Files that must agree with each other: versions, workflows, hooks, links to the project."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from sdexport.engines.trt.library import LIBRARIES

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINNED = dict(
    line.lower().replace("_", "-").split("==")
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
)
TEXT_FILES = ("*.md", "*.py", "*.toml", "*.yml", "*.yaml", "Makefile")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def workflow(name: str) -> Any:
    return read_yaml(ROOT / ".github" / "workflows" / name)


def test_every_dependency_is_pinned_once() -> None:
    extras = PROJECT["optional-dependencies"]
    here = [extras[name] for name in extras if name not in ("gpu", "tensorrt")]
    wanted = [*PROJECT["dependencies"], *(item for items in here for item in items)]
    names = {re.split(r"[\[<>=~]", item)[0].lower().replace("_", "-") for item in wanted}
    assert names <= PINNED.keys()
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(PINNED) and lines == sorted(lines, key=str.lower)


def test_tests_run_on_every_supported_python() -> None:
    matrix = workflow("tests.yml")["jobs"]["tests"]["strategy"]["matrix"]
    classifiers = [
        found[1]
        for line in PROJECT["classifiers"]
        if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line))
    ]
    assert matrix["python"] == classifiers
    assert PROJECT["requires-python"] == f">={classifiers[0]}"
    assert [name.split("-")[0] for name in matrix["os"]] == ["ubuntu", "macos", "windows"]
    installed = workflow("wheels.yml")["jobs"]["install"]["strategy"]["matrix"]["python"]
    assert installed == [classifiers[0], classifiers[-1]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_has_few_rights_and_ends(path: Path) -> None:
    found = read_yaml(path)
    assert found["permissions"] == {"contents": "read"}
    for name, job in found["jobs"].items():
        assert 0 < job["timeout-minutes"] <= 60, name
        assert job.get("permissions", {}).get("contents") is None, name
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step), name
            assert "@" in step.get("uses", "@"), name


def test_workflows_run_targets_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    texts = [path.read_text(encoding="utf-8") for path in (*WORKFLOWS, ROOT / ".ci" / "run")]
    targets = {name for text in texts for name in re.findall(r"\bmake ([a-z-]+)$", text, re.M)}
    assert {"lint", "docs", "demo", "perf"} <= targets
    assert all(f"\n{name}:" in makefile for name in targets)


def test_hooks_use_the_pinned_versions() -> None:
    repos = read_yaml(ROOT / ".pre-commit-config.yaml")["repos"]
    hooks = [hook for repo in repos for hook in repo["hooks"]]
    wanted = [item for hook in hooks for item in hook.get("additional_dependencies", [])]
    assert {hook["id"] for hook in hooks} >= {"ruff", "ruff-format", "lint"}
    for item in wanted:
        name, version = item.replace("_", "-").split("==")
        assert PINNED.get(name) == version, item


def test_every_link_to_the_project_begins_with_its_home() -> None:
    home = PROJECT["urls"]["Homepage"]
    found = [
        (path.name, link)
        for pattern in TEXT_FILES
        for path in ROOT.rglob(pattern)
        if not any(part[0] == "." or part == "build" for part in path.relative_to(ROOT).parts)
        for link in re.findall(
            r"https://github\.com/[\w-]+/sdexport\b", path.read_text(encoding="utf-8")
        )
    ]
    assert ("SECURITY.md", home) in found
    assert {link for _, link in found} == {home}


def test_gpu_extra_brings_what_a_gpu_needs() -> None:
    """cuda-bindings find the GPU; ONNX Runtime needs the libraries of CUDA and cuDNN."""
    extras = PROJECT["optional-dependencies"]
    (runtime,) = (item for item in extras["gpu"] if item.startswith("onnxruntime-gpu"))
    assert "[cuda,cudnn]" in runtime
    for name in ("gpu", "tensorrt", "tensorrt-rtx"):
        assert "cuda-bindings>=12.9" in extras[name]
    for name, lib in LIBRARIES.items():
        assert any(item.endswith(f">={lib.oldest}") for item in extras[name])
