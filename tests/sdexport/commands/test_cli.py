"""The command line: its output, exit statuses, and errors in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from sdexport.cli import ISSUES, main
from sdexport.engines.errors import (
    InvalidArgumentError,
    MissingDependencyError,
    PackageError,
    WorkerError,
)

ROOT = Path(__file__).parents[3]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def assert_one_line_error(result: Result, *parts: str) -> None:
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    for part in parts:
        assert part in result.stderr


def test_generate_writes_an_image_and_its_parameters(package: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    arguments = ("generate", package, "a red circle", "-o", out, "--steps", 3, "--seed", 0)
    result = call(*arguments, "--scheduler", "lms", "--size", "64x96", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)["images"]
    assert len(report) == 1 and report[0]["seed"] == 0 and report[0]["path"] == str(out)
    with Image.open(out) as image:
        assert image.size == (64, 96)
        assert (
            "Steps: 3, Sampler: LMS, Schedule type: Uniform, CFG scale: 7.5, Seed: 0, Size: 64x96"
            in (image.info["parameters"])
        )


def test_generate_count_uses_seeds_that_follow(package: Path, tmp_path: Path) -> None:
    base = ("generate", package, "a star", "--steps", 2)
    result = call(*base, "-o", tmp_path / "a.png", "--count", 2, "--seed", 4)
    assert result.exit_code == 0, result.output
    assert "a-0.png (seed 4)" in result.stdout and "a-1.png (seed 5)" in result.stdout
    assert call(*base, "-o", tmp_path / "b.png", "--seed", 5).exit_code == 0
    a, b = (Image.open(tmp_path / name) for name in ("a-1.png", "b.png"))
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_generate_needs_force_to_overwrite(package: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    out.write_bytes(b"mine")
    base = ("generate", package, "a star", "--steps", 1, "-o", out)
    assert_one_line_error(call(*base), "a.png exists; use --force")
    assert out.read_bytes() == b"mine"
    assert call(*base, "--force").exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "num_inference_steps must be 1 to 100000, got 0"),
        (["--steps", "99999999999999999999"], "num_inference_steps must be 1 to 1000"),
        (["--guidance", "-2"], "guidance_scale must be 0 or more, got -2.0"),
        (["--guidance", "nan"], "guidance_scale must be 0 or more"),
        (["--seed", str(2**64)], "seed: expected"),
        (["--size", "100x128"], "width must be a multiple of 8"),
        (["--size", "128x0"], "height must be a multiple of 8"),
        (["--size", "99999992x8"], "width must be a multiple of 8 from 8 to 16384"),
        (["--scheduler", "magic"], "unknown scheduler 'magic'; choose one of ddim, ddpm, pndm"),
        (["--backend", "abacus"], "unknown backend 'abacus'; choose one of onnxruntime"),
    ],
)
def test_generate_errors_are_one_line(
    package: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    result = call("generate", package, "x", "-o", tmp_path / "a.png", *options)
    assert_one_line_error(result, message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", ["", "128", "axb", "-8x8", "8x8x8", "1e3x8", "١٢٨x128" * 3])
def test_generate_size_that_is_none_is_a_usage_error(
    package: Path, tmp_path: Path, size: str
) -> None:
    result = call("generate", package, "x", "-o", tmp_path / "a.png", "--size", size)
    assert result.exit_code == 2 and "is not a size; expected WIDTHxHEIGHT" in result.stderr


def test_generate_output_that_cannot_be(package: Path, tmp_path: Path) -> None:
    base = ("generate", package, "x", "-o")
    assert_one_line_error(call(*base, tmp_path / "no" / "a.png"), "there is no folder")
    assert_one_line_error(call(*base, tmp_path / "a.gif"), "a name that ends in .png")
    (tmp_path / "file").write_text("x")
    assert_one_line_error(call(*base, tmp_path / "file" / "a.png"), "there is no folder")


def test_generate_into_a_folder_that_is_read_only(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write everywhere, so os.access is replaced."""
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    result = call("generate", package, "x", "-o", tmp_path / "a.png")
    assert_one_line_error(result, "cannot be written")


def test_generate_disk_full(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result = call("generate", package, "x", "-o", tmp_path / "a.png", "--steps", 1)
    assert_one_line_error(result, f"{tmp_path / 'a.png'}: No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_generate_long_and_odd_prompts(package: Path, tmp_path: Path) -> None:
    for number, prompt in enumerate(["", "circle " * 10_000, "🔴" * 50, "\x01\x7f"]):
        out = tmp_path / f"{number}.png"
        code = "from sdexport.cli import main; import sys; main(sys.argv[1:])"
        done = subprocess.run(
            [sys.executable, "-c", code, "generate", package, prompt, "-o", out, "--steps", "1"],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert ("WARNING: prompt of 10000 tokens is truncated" in done.stderr) == (number == 1)


@pytest.mark.parametrize("command", ["verify", "inspect", "generate"])
def test_commands_on_no_package(command: str, tmp_path: Path) -> None:
    rest = ["x", "-o", tmp_path / "a.png"] if command == "generate" else []
    assert_one_line_error(call(command, tmp_path / "nowhere", *rest), "there is no such folder")
    (tmp_path / "empty").mkdir()
    assert_one_line_error(call(command, tmp_path / "empty", *rest), "it has no sdexport.json")


def test_commands_on_a_truncated_package(package_copy: Path, tmp_path: Path) -> None:
    path = package_copy / "unet" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    for command in ("verify", "inspect"):
        assert_one_line_error(
            call(command, package_copy), "unet/model.onnx is truncated or altered"
        )


def test_verify_prints_a_table_and_json(package: Path) -> None:
    result = call("verify", package)
    assert result.exit_code == 0 and "FAILED" not in result.stdout
    first, head, *_, empty, last = result.stdout.splitlines()
    assert first.startswith("on onnxruntime, ") and empty == ""
    assert head.split() == ["check", "output", "error", "file"]
    assert last == "passed: 19 checks"
    report = json.loads(call("verify", package, "--json").stdout)
    assert list(report) == ["passed", "checks", "not_checked", "about", "advice"]
    assert report["passed"] is True and len(report["checks"]) == 19
    shared = next(c for c in report["checks"] if c["way"] == "bound and shared inputs")
    assert (shared["file"], shared["backend"]) == ("unet/model.onnx", "onnxruntime")
    assert shared["statistics"].keys() >= {"expected_mean", "actual_mean", "actual_max"}
    assert json.loads(call("verify", package, "--json", "--low-memory").stdout) == report


def test_verify_fails_on_altered_weights(package_copy: Path) -> None:
    path = package_copy / "vae_decoder" / "model.onnx"
    data = bytearray(path.read_bytes())
    data[-1000] ^= 255
    path.write_bytes(data)
    result = call("verify", package_copy)
    assert result.exit_code == 1
    row, last = result.stdout.splitlines()[2], result.stdout.splitlines()[-1]
    assert row.startswith("FAILED  vae_decoder")
    assert row.endswith("altered: vae_decoder/model.onnx")
    assert last.startswith("FAILED: ") and "vae_decoder" in last
    assert "what to do: vae_decoder: files are not those that were exported" in result.stdout
    assert result.stderr == "error: the package does not reproduce the reference outputs\n"
    report = call("verify", package_copy, "--json")
    assert report.exit_code == 1 and json.loads(report.stdout)["passed"] is False


def test_inspect_prints_components_and_json(package: Path) -> None:
    result = call("inspect", package)
    assert result.exit_code == 0
    for part in ("unet: fp32, opset 23", "<- sample: float32 (batch, 4, height, width)", "128x128"):
        assert part in result.stdout
    report = json.loads(call("inspect", package, "--json").stdout)
    assert report["format_version"] == 3 and report["size"] > 10e6


def test_export_errors_are_one_line(package: Path, checkpoint: Path, tmp_path: Path) -> None:
    assert_one_line_error(call("export", tmp_path / "no", tmp_path / "p"), "no such folder")
    assert_one_line_error(
        call("export", "no/model", tmp_path / "p"), "it could not be fetched from the hub"
    )
    assert_one_line_error(call("export", checkpoint, package), "exists; use --force")
    assert call("export", checkpoint, tmp_path / "p", "--opset", 17).exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_usage_errors_have_status_two() -> None:
    assert call("generate").exit_code == 2
    assert call("draw").exit_code == 2
    assert call("--version").exit_code == 0


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Result:
    """Run a command in which loading the package raises an error."""

    def load(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("sdexport.runtime.packages.package.Package.load", load)
    return call(*arguments, "inspect", "package")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PackageError("it is\nincomplete"), "it is incomplete"),
        (WorkerError("it died"), "it died"),
        (InvalidArgumentError("size must be positive"), "size must be positive"),
        (MissingDependencyError("run: pip install 'x'"), "run: pip install 'x'"),
        (FileNotFoundError(2, "No such file", "a.png"), "a.png: No such file"),
        (MemoryError(), "out of memory; a smaller size, fewer images at once"),
        (MemoryError("unable to allocate 8 GiB"), "out of memory: unable to allocate 8 GiB; a "),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 8"), "out of memory: Default"),
    ],
)
def test_expected_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    assert_one_line_error(fail_with(error, monkeypatch), message)
    result = fail_with(error, monkeypatch, "--debug")
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr.startswith("Traceback (most recent call last):")
    assert result.stderr.splitlines()[-1].startswith(f"error: {message}")


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("division by zero"),
        ValueError("could not broadcast"),
        ImportError("cannot import name"),
        KeyError("unet"),
        AssertionError(),
        RuntimeError("lost"),
        RecursionError("too deep"),
    ],
)
def test_other_errors_are_bugs(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    result = fail_with(error, monkeypatch)
    assert result.exit_code == 1 and result.stdout == ""
    first, second = result.stderr.splitlines()
    assert first.startswith(f"error: this is a bug in sdexport: {type(error).__name__}: ")
    assert str(error) in first
    assert second == f"Please run again with --debug and report it at {ISSUES}"
    result = fail_with(error, monkeypatch, "--debug")
    assert result.exit_code == 1
    assert result.stderr.startswith("Traceback (most recent call last):")
    assert result.stderr.splitlines()[-2:] == [
        first,
        f"Please report it, with this traceback, at {ISSUES}",
    ]


def test_debug_and_quiet_stand_before_or_after_the_command(tmp_path: Path) -> None:
    for arguments in (("--debug", "inspect"), ("inspect", "--debug")):
        assert "Traceback" in call(*arguments, tmp_path / "nowhere").stderr
    assert call("-q", "inspect", "-v", tmp_path).exit_code == 2


def test_quiet_leaves_warnings_out(package: Path, tmp_path: Path) -> None:
    """Each level in a process of its own, as loggers are the process's."""
    base = [sys.executable, "-m", "sdexport", "generate", package, "circle " * 100, "--steps", "1"]
    for option, expected in (("-v", True), ("-q", False)):
        command = [*base, "-o", tmp_path / f"{option}.png", option]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert ("WARNING: prompt of 100 tokens is truncated" in done.stderr) == expected
        assert f"{option}.png (seed " in done.stdout


def test_every_command_has_the_common_options() -> None:
    for name in main.commands:
        text = call(name, "--help").stdout
        for option in ("-q, --quiet", "-v, --verbose", "--debug", "--json", "-h, --help"):
            assert option in text, (name, option)


def test_help_loads_no_numpy() -> None:
    """Help, completion and usage errors come at once."""
    code = "import sys; from sdexport.cli import main; main(['--help'], standalone_mode=False)"
    code += "; print('numpy' in sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "False\n")


def test_address_for_bug_reports_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["urls"]["Issues"] == ISSUES


@pytest.mark.parametrize(
    ("options", "extra"),
    [
        ([], "cpu"),
        (["--backend", "auto"], "cpu"),
        (["--backend", "onnxruntime-cuda"], "gpu"),
        (["--backend", "openvino"], "openvino"),
        (["--backend", "tensorrt"], "tensorrt"),
    ],
)
def test_field_case_n8_backend_that_is_not_installed(
    package: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    extra: str,
) -> None:
    """The message names the pip command, for the default backend too."""
    for module in ("onnxruntime", "openvino", "tensorrt"):
        monkeypatch.setitem(sys.modules, module, None)
    for module in [name for name in sys.modules if name.startswith("sdexport.engines.")]:
        if module.endswith(("_session", "library", ".compiler")):
            monkeypatch.delitem(sys.modules, module)
    result = call("generate", package, "x", "-o", tmp_path / "a.png", "--steps", 1, *options)
    assert_one_line_error(result, "is not installed" if options[1:] != ["auto"] else "no inference")
    assert f"'sdexport[{extra}]'" in result.stderr and "run: pip install" in result.stderr
    assert list(tmp_path.iterdir()) == []
