"""`sdexport generate` at work: many prompts, names of files, short options, the environment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from sdexport.cli import main
from sdexport.commands.generate_jobs import _NOT_SETTINGS, jobs_of, read_rows
from sdexport.runtime.pipeline import call_argument_names

JSON_LINES = """
{"prompt": "a red circle", "seed": 7, "num_inference_steps": 1}
a blue star
{"prompt": "two\\nlines", "output": "own.png", "width": 64, "height": 64, "seed": -1}
"""


def call(*arguments: object, **how: Any) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], **how)


def saved(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.fixture
def base(package: Path) -> tuple[object, ...]:
    return ("generate", package, "-s", 1, "-W", 64, "-H", 64)


def test_field_case_n7_prompts_of_a_file(
    base: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text and JSON lines in one file; a row's own settings come before those of the command."""
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text(JSON_LINES)
    result = call(*base, "--prompts", "prompts.txt", "-o", "{index}-{seed}.png", "-S", 3, "--json")
    assert result.exit_code == 0, result.output
    images = json.loads(result.stdout)["images"]
    assert [i["prompt"] for i in images] == ["a red circle", "a blue star", "two\nlines"]
    assert [i["path"] for i in images] == ["0-7.png", "1-4.png", "own.png"]
    assert saved(tmp_path) == ["0-7.png", "1-4.png", "own.png", "prompts.txt"]


@pytest.mark.parametrize("how", ["-", "@prompts.txt", "--prompts=-", "--prompts=prompts.txt"])
def test_field_case_n7_prompts_of_standard_input_and_at(
    base: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "\ufeffa red circle\r\n\r\na blue star\n"
    Path("prompts.txt").write_text(text, encoding="utf-8")
    result = call(*base, how, "-o", "a.png", "-S", 1, "-n", 2, input=text.encode())
    assert result.exit_code == 0, result.output
    assert saved(tmp_path) == ["a-0.png", "a-1.png", "a-2.png", "a-3.png", "prompts.txt"]
    assert "4 of 4: a-3.png (seed 4)" in result.stdout
    with Image.open("a-2.png") as image:
        assert image.info["parameters"].startswith("a blue star\n")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no prompt in it"),
        (b"\n \n", "no prompt in it"),
        (b"\xff\xfe\x00", "not a text in UTF-8"),
        (b'{"prompt": ', "line 1: not valid JSON"),
        (b'x\n{"prompt": "a", "stesp": 3}', "line 2: unknown setting 'stesp'; known are"),
        (b'{"prompt": "a", "num_inference_step": 3}', "did you mean num_inference_steps?"),
        (b'{"prompt": 3}', 'expected a text as "prompt"'),
        (b'{"steps": 3}', "unknown setting 'steps'; did you mean num_inference_steps?"),
        (b'{"prompt": "a", "size": "64x64"}', "did you mean width and height?"),
        (b'[{"prompt": "a"}, {"prompt": "b"}]', "line 1: a list of JSON objects"),
        (b'a\n{"prompt": "a", "seed": "5"}', "line 2: seed: expected an integer"),
        (b'{"prompt": "a", "output": ""}', "--output is empty"),
        (b'{"prompt": "a", "output": 3}', 'expected a file name as "output"'),
        (b'{"prompt": "a", "seed": "one"}', "seed: expected"),
        (b'{"prompt": "a", "seed": 1.5}', "seed: expected"),
        (b'{"prompt": "a", "width": "x"}', "width must be a multiple of 8"),
        (b'{"prompt": "a", "guidance_scale": NaN}', "guidance_scale must be 0 or more"),
        (b'{"prompt": "a", "num_images_per_prompt": 2}', "unknown setting 'num_images_per_prompt'"),
        (b'{"a": ' + b"[" * 100_000, "not valid JSON"),
        (b"a" * (2**24 + 1), "prompts of more than 16 MB"),
        (b"a\n" * 100_001, "more than 100,000 lines; split it"),
        (b"\n" * 3 + b"a" * (2**20 + 1), "a line of more than 1,048,576 characters"),
    ],
)
def test_prompts_that_cannot_be_read(
    base: tuple[object, ...], tmp_path: Path, data: bytes, message: str
) -> None:
    file = tmp_path / "p.jsonl"
    file.write_bytes(data)
    result = call(*base, "--prompts", file, "-o", tmp_path / "a.png")
    assert result.exit_code == 1 and message in result.stderr, result.output
    assert result.stderr.count("\n") == 1 and "bug" not in result.stderr
    assert saved(tmp_path) == ["p.jsonl"]


def test_only_line_feeds_end_a_prompt(tmp_path: Path) -> None:
    """JSON holds U+2028 and the like unescaped; editors do not end a line there."""
    file = tmp_path / "p.jsonl"
    file.write_text('a\x0bb\u2028c\r\n{"prompt": "d\u2028e\x85f"}', encoding="utf-8")
    assert [row["prompt"] for row in read_rows(str(file))] == ["a\x0bb\u2028c", "d\u2028e\x85f"]


def test_an_error_in_one_of_many_prompts_names_the_image(
    base: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text('a\n{"prompt": "b", "clip_skip": 77}')
    result = call(*base, "--prompts", "p.txt", "-o", "{index}.png")
    assert result.exit_code == 1
    assert "error: image 2 of 2, 1.png: clip_skip must be" in result.stderr
    assert saved(tmp_path) == ["0.png", "p.txt"]


def test_at_without_a_file_is_a_prompt_with_a_warning(
    base: tuple[object, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = call(*base, "@prompts.text", "-o", tmp_path / "a.png")
    assert result.exit_code == 0
    assert "there is no file prompts.text, so that @prompts.text is read as a prompt" in caplog.text


def test_a_link_to_nothing_is_not_overwritten(base: tuple[object, ...], tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("missing.png")
    result = call(*base, "a", "-o", tmp_path / "a.png")
    assert result.exit_code == 1 and "a.png exists; use --force" in result.stderr


@pytest.mark.parametrize(
    "options",
    [
        ["a", "--prompts", "p.txt"],
        ["--prompts", "p.txt", "--embeds", "e.npz"],
        ["--prompts", "p.txt", "--save-embeds", "e.npz"],
        ["a", "--size", "64x64", "--width", "64"],
        ["a", "-n", "0"],
        ["a", "--timestep-spacing", "trailing", "--scheduler-option", "timestep_spacing=leading"],
        ["a", "--scheduler-option", "solver_order=2", "--scheduler-option", "solver_order=3"],
    ],
)
def test_options_that_exclude_each_other(package: Path, tmp_path: Path, options: list[str]) -> None:
    result = call("generate", package, "-o", tmp_path / "a.png", *options)
    assert result.exit_code == 2, result.output


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{index:03d}-{seed}.png", "000-5.png"),
        ("{prompt}.png", "a-b-c-..png"),
        ("{width}x{height}-{num_inference_steps}.png", "64x32-2.png"),
        ("{{x}}.png", "{x}.png"),
        ("plain.png", "plain.png"),
        ("", "0000-5.png"),
    ],
)
def test_names_of_images(tmp_path: Path, template: str, name: str) -> None:
    settings = {"width": 64, "height": 32, "num_inference_steps": 2}
    row = {"prompt": "../a b/c: ."}
    (job,) = jobs_of([row], settings, f"{tmp_path}/{template}", seed=5, count=1)
    assert job.path.parent == tmp_path, "a prompt cannot leave the folder"
    assert job.path.name == name.replace("a-b-c-.", "a-b-c") and job.seed == 5


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{indx}.png", "no setting 'indx'"),
        ("{seed.__class__}.png", "no setting 'seed.__class__'"),
        ("{seed!r:>99999999}.png", "unknown format"),
        ("{seed:9999999999d}.png", "unknown format"),
        ("{seed", "expected '}'"),
        ("{}.png", "no setting '"),
        ("{width}.png", "gives the name"),
    ],
)
def test_templates_that_cannot_be(tmp_path: Path, template: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"--output .*") as error:
        jobs_of(
            [{"prompt": "x"}], {"width": 8}, f"{tmp_path}/{template}", seed=0, count=2, force=True
        )
    assert message in str(error.value)


def test_field_case_n5_one_default_everywhere(package: Path, tmp_path: Path) -> None:
    """The number of steps is 50, as in the library and in diffusers."""
    result = call("generate", package, "x", "-o", tmp_path / "a.png", "-W64", "-H64", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["images"][0]["num_inference_steps"] == 50


def test_field_case_r7_seed_minus_one_is_random(base: tuple[object, ...], tmp_path: Path) -> None:
    """Each time another image; the seed is printed and reproduces it."""
    seeds = []
    for name in ("a.png", "b.png"):
        result = call(*base, "x", "-o", tmp_path / name, "--seed", -1)
        assert result.exit_code == 0, result.output
        seeds.append(result.stdout.split("seed ")[1].rstrip(")\n"))
    assert seeds[0] != seeds[1]
    assert call(*base, "x", "-o", tmp_path / "c.png", "--seed", seeds[1]).exit_code == 0
    a, b, c = (np.asarray(Image.open(tmp_path / f"{n}.png")) for n in "abc")
    assert np.array_equal(b, c) and not np.array_equal(a, b)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize("as_json", [False, True])
def test_field_case_r9_names_that_the_terminal_cannot_write(
    package: Path, tmp_path: Path, encoding: str, as_json: bool
) -> None:
    """All images are saved, and the names are printed with backslashes."""
    command = [sys.executable, "-m", "sdexport", "generate", str(package), "x", "-s1", "-n", "2"]
    command += ["-W64", "-H64", "-o", str(tmp_path / "图像é.png"), *(["--json"] if as_json else [])]
    environment = {"PYTHONIOENCODING": encoding, "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert saved(tmp_path) == ["图像é-0.png", "图像é-1.png"]
    text = done.stdout.decode("utf-8" if encoding == "ascii" else encoding)  # click mends ASCII
    if as_json:
        assert [Path(i["path"]).name for i in json.loads(text)["images"]] == saved(tmp_path)
    else:
        assert ("\\u56fe\\u50cf" if encoding == "cp1252" else "图像é-1.png") in text


def test_environment_variables_set_options(package: Path, tmp_path: Path) -> None:
    variables = {
        "SDEXPORT_GENERATE_STEPS": "2",
        "SDEXPORT_GENERATE_BACKEND": "onnxruntime unet=onnxruntime,threads=1",
        "SDEXPORT_GENERATE_SIZE": "64x64",
    }
    out = tmp_path / "a.png"
    result = call("generate", package, "x", "-o", out, "-S", 1, "--json", env=variables)
    assert result.exit_code == 0, result.output
    (image,) = json.loads(result.stdout)["images"]
    assert (image["num_inference_steps"], image["width"]) == (2, 64)
    bad = call("generate", package, "x", "-o", out, env={"SDEXPORT_GENERATE_SIZE": "wide"})
    assert bad.exit_code == 2 and "'wide' is not a size" in bad.stderr


def test_environment_variable_of_no_option_is_named(caplog: pytest.LogCaptureFixture) -> None:
    call("demo", "--help", env={"SDEXPORT_GENERATE_STEP": "3", "SDEXPORT_GENERATE_SEED": "3"})
    (message,) = caplog.messages
    assert "SDEXPORT_GENERATE_STEP sets no option; did you mean SDEXPORT_GENERATE_STEPS?" in message


def test_every_setting_of_the_pipeline_can_be_in_a_line(tmp_path: Path) -> None:
    """A new argument is accepted in JSON lines, or is named among those that cannot be there."""
    names = set(call_argument_names())
    assert names >= _NOT_SETTINGS
    file = tmp_path / "p.jsonl"
    for name in names - _NOT_SETTINGS - {"prompt"}:
        file.write_text(json.dumps({"prompt": "x", name: None}))
        assert read_rows(str(file)) == [{"prompt": "x", name: None}]


def test_progress_without_a_terminal_counts_the_steps(package: Path, tmp_path: Path) -> None:
    """Field case N11: plain lines while the work goes on; see also test_cli.py."""
    code = (
        "import sys; from sdexport.commands import progress; progress.LINE = 0.05\n"
        "from sdexport.cli import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "generate", str(package), "x", "-s", "40", "-n", "2"]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "a.png")], capture_output=True, text=True, check=True
    )
    lines = done.stderr.splitlines()
    assert len(lines) > 2 and all(line.startswith("generate (") for line in lines[1:]), lines
    assert "/80, " in lines[-1]
    assert done.stdout.splitlines()[0].startswith("1 of 2: ")
