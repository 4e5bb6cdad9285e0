"""LoRAs on the command line: --lora, and names in prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from sdexport import InvalidArgumentError, read_parameters
from sdexport.cli import main
from sdexport.commands.generate_loras import loras_of, with_tags

LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "loras"
    (found / "below").mkdir(parents=True)
    factors = {"lora_down.weight": torch.ones(2, 32), "lora_up.weight": torch.ones(32, 2)}
    for name in ("a", "below/b c"):
        save_file(
            {f"{LAYER}.{key}": value for key, value in factors.items()},
            found / f"{name}.safetensors",
        )
    return found


def test_names_in_prompts(folder: Path) -> None:
    a, b = folder / "a.safetensors", folder / "below" / "b c.safetensors"
    rows: list[dict[str, Any]] = [
        {"prompt": "x <lora:a:0.5> y<LORA:b c>", "seed": 1},
        {"prompt": "x"},
        {"prompt": "<lyco:a:-1>", "prompt_2": "z <lora:a:2>", "loras": [(b, 3.0)]},
        {"prompt": "x <hypernet:a:1>"},
    ]
    found = with_tags(rows, folder, [(b, 2.0)])
    assert found[0] == {
        "prompt": "x  y",
        "seed": 1,
        "loras": [(b, 2.0), (a, 0.5), (b, 1.0)],
    }
    (twice,) = with_tags([{"prompt": "<lora:a:0.5><lora:a:0.5>"}], folder, [])
    assert twice["loras"] == [(a, 1.0)]
    assert found[1] == rows[1] and found[3] == rows[3]
    assert found[2]["loras"] == [(b, 3.0), (a, -1.0), (a, 2.0)] and found[2]["prompt_2"] == "z "


def test_names_in_the_prompt_of_an_image(folder: Path) -> None:
    """Such as AUTOMATIC1111 writes it; a prompt of the command replaces it."""
    a = folder / "a.safetensors"
    found = with_tags([{}, {"prompt": "y"}], folder, [], "x <lora:a:0.5>")
    assert found == [{"prompt": "x ", "loras": [(a, 0.5)]}, {"prompt": "y"}]
    assert with_tags([{}], folder, [], "x") == [{}]


WRONG = {
    "<lora:none:1>": "no such LoRA in .*; it has a, b c",
    "<lora:../a:1>": "no such LoRA",
    "<lora:a:b>": "expected a number as its scale, got 'b'",
    "<lora:a:1:2>": "expected a number as its scale",
}


@pytest.mark.parametrize("tag", WRONG)
def test_names_that_are_wrong(tag: str, folder: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=WRONG[tag]):
        with_tags([{"prompt": tag}], folder, [])


def test_folders_that_are_wrong(folder: Path) -> None:
    (folder / "below" / "a.safetensors").write_bytes(b"")
    with pytest.raises(InvalidArgumentError, match=r"2 files in .* have that name, such as"):
        with_tags([{"prompt": "<lora:a>"}], folder, [])
    with pytest.raises(NotADirectoryError, match=r"--lora-dir: .* is no folder"):
        with_tags([], folder / "none", [])
    (folder / "empty").mkdir()
    with pytest.raises(InvalidArgumentError, match=r"it has no \.safetensors file"):
        with_tags([{"prompt": "<lora:a>"}], folder / "empty", [])


def test_files_with_scales(folder: Path) -> None:
    path = folder / "a.safetensors"
    assert loras_of([str(path), f"{path}:-0.5"]) == [(path, 1.0), (path, -0.5)]
    with pytest.raises(FileNotFoundError, match="no LoRA at"):
        loras_of(["none:1"])
    with pytest.raises(InvalidArgumentError, match="expected a scale of"):
        loras_of([f"{path}:nan"])


def test_command_and_like(lora_package: Path, folder: Path, tmp_path: Path) -> None:
    """The image of both ways is the same, and --like writes the same file."""

    def generate(prompt: str | None, name: str, *options: object) -> Path:
        arguments = ["generate", lora_package, *([prompt] if prompt is not None else [])]
        arguments += ["-o", folder / name, *options]
        done = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.output
        return folder / name

    settings = ("--steps", 2, "--seed", 1, "--size", "64x64")
    one = generate("x", "1.png", *settings, "--lora", f"{folder / 'a.safetensors'}:0.5")
    two = generate("x<lora:a:0.5>", "2.png", *settings, "--lora-dir", folder)
    plain = generate("x", "3.png", *settings)
    assert one.read_bytes() == two.read_bytes() != plain.read_bytes()
    (lora,) = read_parameters(one).loras or ()
    assert (lora.name, lora.scale) == ("a", 0.5)
    again = generate(None, "4.png", "--like", one)
    assert again.read_bytes() == one.read_bytes()
    other = folder / "other"
    other.mkdir()
    elsewhere = one.rename(other / "1.png")  # where no LoRA is, but --lora-dir says where
    once_more = generate(None, "7.png", "--like", elsewhere, "--lora-dir", folder)
    assert once_more.read_bytes() == elsewhere.read_bytes()
    one = elsewhere.rename(one)
    texts = ("--save-embeds", folder / "1.npz")
    generate("x", "6.png", *settings, *texts, "--lora", folder / "a.safetensors")
    stronger = generate(None, "5.png", "--like", one, "--lora", folder / "a.safetensors")
    assert stronger.read_bytes() != one.read_bytes()
