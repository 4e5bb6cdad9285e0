"""What the command line prints holds no control characters, whatever a package or a name holds."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sdexport.bench import bench_table
from sdexport.cli import main
from sdexport.commands.output import EscapedStream, OneLineFormatter, json_document
from sdexport.demo_model import PACKAGE_DIR
from sdexport.engines.printable_text import escaped
from sdexport.verification.report import Check
from sdexport.verification.text_report import table_lines
from tests.helpers.changed_package import accept_files, edit_manifest, remove_notes

ROOT = Path(__file__).parents[3]
FORGED = "error: forged"
HOSTILE = f"x\x1b]0;title\x07\x1b[2J\x9b31m\x7f\u202e\u2066\u2028\u2029\x85\b\v\f\x00\r\n{FORGED}"
"""Sets a terminal's title, clears it, reorders text, and ends the line."""


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def assert_harmless(*printed: str | bytes) -> None:
    for text in printed:
        text = text.decode() if isinstance(text, bytes) else text
        unsafe = {c for c in text if not c.isprintable() and unicodedata.category(c) != "Zs"}
        assert unsafe <= {"\n"}, text
        assert not [line for line in text.split("\n") if line.startswith(FORGED)], text


@pytest.fixture(scope="module")
def hostile_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package that loads, with control characters in every text that may be any."""
    folder = shutil.copytree(PACKAGE_DIR, tmp_path_factory.mktemp("hostile") / "package")

    def change(manifest: dict[str, Any]) -> None:
        for name in ("source", "tools"):
            manifest[name] = {
                f"{key}{HOSTILE}": f"{v}{HOSTILE}" for key, v in manifest[name].items()
            }
        manifest["verified_with"] = HOSTILE
        for component in manifest["components"].values():
            component["precision"] = f"fp16{HOSTILE}"
            component["nodes"] = {HOSTILE: 3}
        figures = manifest["verification"]
        figures[f"unet.{HOSTILE}"] = {**figures["unet.out_sample"], "metric": HOSTILE}

    edit_manifest(folder, change)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {HOSTILE: HOSTILE}))
    remove_notes(folder)  # which would disagree with the manifest
    accept_files(folder)
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "PACKAGE"],
        ["inspect", "PACKAGE", "--json"],
        ["generate", "PACKAGE", HOSTILE, "--steps", "1", "-o", "OUT/a.png"],
        ["verify", "PACKAGE"],
        ["build", "PACKAGE", "--backend", "onnxruntime", "--component", "vae_encoder"],
        ["build", "PACKAGE", "--backend", "onnxruntime", "--component", HOSTILE],
        ["bench", "PACKAGE", "--backend", f"abacus{HOSTILE}"],
        ["export", "PACKAGE", "OUT/exported"],
    ],
    ids=lambda arguments: "-".join(a for a in arguments if a.isascii())[:40],
)
def test_commands_escape_the_texts_of_a_package(
    hostile_package: Path, tmp_path: Path, arguments: list[str]
) -> None:
    pytest.importorskip("onnxruntime")
    places = {"PACKAGE": str(hostile_package), "OUT/a.png": str(tmp_path / "a.png")}
    result = call(*(places.get(a, a.replace("OUT", str(tmp_path))) for a in arguments))
    assert_harmless(result.stdout, result.stderr)
    assert result.stdout or result.stderr


def test_json_keeps_the_texts(hostile_package: Path) -> None:
    report = json.loads(call("inspect", hostile_package, "--json").stdout)
    assert report["verified_with"] == HOSTILE


def rename_component(manifest: dict[str, Any]) -> None:
    manifest["components"][HOSTILE] = manifest["components"].pop("vae_encoder")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(family=HOSTILE),
        lambda m: m.update(format_version=HOSTILE),
        lambda m: m.update(prediction_type=HOSTILE),
        lambda m: m.update({HOSTILE: HOSTILE}),
        lambda m: m["files"][0].update(path=HOSTILE),
        lambda m: m["files"][0].update(size=HOSTILE),
        lambda m: m["components"]["unet"].update(opset=HOSTILE),
        lambda m: m["components"]["unet"]["files"].append({"path": f"../{HOSTILE}", "size": 1}),
        lambda m: m["components"]["unet"]["inputs"][0].update(shape=HOSTILE),
        rename_component,
    ],
)
def test_errors_escape_the_texts_of_a_manifest(
    tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    folder = shutil.copytree(PACKAGE_DIR, tmp_path / "package")
    edit_manifest(folder, change)
    for options in ([], ["--json"]):
        result = call("inspect", folder, *options)
        assert_harmless(result.stdout, result.stderr)


@pytest.mark.parametrize("name", ["tokenizer/vocab.json", "model_index.json", "unet/model.onnx"])
def test_errors_escape_names_of_files_and_their_content(tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(PACKAGE_DIR, tmp_path / "package\x1b[2J\u202e")
    (folder / name).write_text(f'{{"{HOSTILE}": ["{HOSTILE}"]}}')
    for arguments in (["inspect", folder], ["verify", folder], ["inspect", folder / HOSTILE[:9]]):
        result = call(*arguments)
        assert result.exit_code != 0 and result.stderr
        assert_harmless(result.stdout, result.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        [f"pai\x1b[2Jnt{HOSTILE}"],
        [f"--option\x1b[2J{HOSTILE}"],
        ["generate", "no\x1b[2J", "x", f"--size={HOSTILE}"],
        ["schedulers", HOSTILE],
        ["inspect", f"{HOSTILE.replace(chr(0), '')}.png"],
        ["inspect", "no\x1b[2J", f"--{HOSTILE}"],
    ],
)
def test_usage_errors_escape_arguments(arguments: list[str]) -> None:
    result = call(*arguments)
    assert result.exit_code != 0 and result.stderr
    assert "\x1b" not in result.stderr and "\u202e" not in result.stderr


def test_warnings_tracebacks_and_library_output_are_escaped(tmp_path: Path) -> None:
    """In a process of its own, where nothing else handles log records."""
    code = (
        "import sys, warnings\n"
        "from sdexport.cli import main\n"
        "import sdexport.runtime.pipeline_loading as pipeline_loading\n"
        "def load(folder, **options):\n"
        "    warnings.warn('library ' + folder.name)\n"
        "    print('printed ' + folder.name, file=sys.stderr)\n"
        "    raise RuntimeError(folder.name)\n"
        "pipeline_loading.load_pipeline = load\n"
        "main(['--debug', 'generate', *sys.argv[1:]])"
    )
    name = HOSTILE.replace("\0", "").replace("/", "")
    done = subprocess.run(
        [sys.executable, "-c", code, name, "@\x1b[2J\u202e", "-o", str(tmp_path / "a.png")],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode == 1
    text = done.stderr.decode().replace("\r\n", "\n")
    for part in ("WARNING: there is no file \\x1b[2J", "Traceback", "error: this is a bug"):
        assert part in text
    for character in ("\x1b", "\x9b", "\u202e", "\u2028", "\x85"):
        assert character not in text


def test_tables_have_a_line_for_each_row() -> None:
    checks = [Check("unet", HOSTILE, note=HOSTILE), Check(HOSTILE, "sample", inputs=HOSTILE)]
    lines = table_lines(checks)
    assert len(lines) == 1 + len(checks)
    assert_harmless(*map(escaped, lines))
    work = {"width": 8, "height": 8, "batch": 1, "num_inference_steps": 1, "repeats": 1}
    report = {"package": HOSTILE, "work": work, "backends": {HOSTILE: {"error": HOSTILE}}}
    assert_harmless(bench_table.table(report))


def test_escaped_keeps_texts_of_every_script() -> None:
    for text in ("plain", "ein Würfel", "日本語\u3000全角", "👩‍🚀 e\u0301", "می\u200cخواهم", ""):
        assert escaped(text) == text
    assert escaped("a\x1b[0m\ud800\U000e0041\n") == "a\\x1b[0m\\ud800\\U000e0041\\n"
    assert escaped("a\nb\x1b", "\n") == "a\nb\\x1b"


def test_json_document_is_the_same_document() -> None:
    value = {HOSTILE: [HOSTILE, "日本\U000e0041\ud800"]}
    document = json_document(json.dumps(value, indent=2, ensure_ascii=False))
    assert json.loads(document) == value
    assert_harmless(document)


def test_log_records_are_one_line() -> None:
    record = logging.LogRecord("x", logging.WARNING, "", 0, "a %s", (HOSTILE,), None)
    line = OneLineFormatter("%(levelname)s: %(message)s").format(record)
    assert_harmless(line)
    assert "\n" not in line and line.startswith("WARNING: a x\\x1b]0;title")


def test_streams_keep_progress_bars() -> None:
    written = io.StringIO()
    stream = EscapedStream(written)
    assert stream.write("\r50%\x1b[A\n") == len("\r50%\x1b[A\n")
    stream.writelines(["\x1b[2J\t"])
    assert written.getvalue() == "\r50%\x1b[A\n\\x1b[2J\t"


def test_everything_is_printed_in_one_place() -> None:
    allowed = {"output.py", "shared_options.py"}
    found = [
        str(path)
        for path in (ROOT / "sdexport").glob("*/*.py")
        if path.parent.name not in ("demo_model", "engines", "runtime")
        and path.name not in allowed
        and re.search(
            r"click\.s?echo\(|click\.secho\(|(?<!def )(?<!\.)\bprint\(|sys\.std(out|err)\.write",
            path.read_text("utf-8"),
        )
    ]
    assert found == []
