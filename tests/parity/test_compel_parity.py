"""Compel's prompts compared with the compel library, on the demo model's text encoder."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from sdexport import ClipTokenizer, InvalidArgumentError, Pipeline
from sdexport.demo_model import MODEL_DIR
from sdexport.runtime.text.compel_embeds import encode_compel
from sdexport.runtime.text.compel_parser import parse_compel
from sdexport.runtime.text.prompt_embeds import TextEmbeds
from tests.helpers.changed_package import as_optimum_folder
from tests.helpers.families import build
from tests.helpers.family_pipelines import Both
from tests.helpers.shared import made_once
from tests.tolerances import COMPONENT_REL, assert_close

compel = pytest.importorskip("compel")
parser = pytest.importorskip("compel.prompt_parser")

PROMPTS = [
    "a red circle",
    "a (red)1.5 circle++ on a blue-- background",
    "a (red)0.5 circle, (blue star)0",
    '("a red circle", "a (blue)0.6 star").and(1, 0.4)',
    '("a red circle", "a blue star").blend(0.7, 0.3)',
    '("red", "blue circle").blend(1, -0.5, no_normalize)',
    "red, " * 60 + "(blue star)0.5 circle. red red",
    "a red. " * 40 + "(blue star circle " + "red " * 60 + ")0.3",
    "red " * 100,
    r"a \(red\) circle (with (a)1.2 (green)0.7 border)1.1",
    "",
]
WORDS = ("red", "blue star", "a", "well-known", "1.5", "a, b", "x.y", r"\(z\)", "é", "")
SIGNS = ("++", "-", "1.3", "0.5", "", "--- ", ".attend(1.2)", "-1", "0", ".attend(++)", " 1.2")
NOISE = (
    *("a", '"', " ", "(", ")", "+", "--", ",", ".", "1.2", r"\(", r"\"", "=", ".attend(", ".swap("),
    *(".blend(", ".and(", "no_normalize", "withLora(a,0.5)", "\t", "\n", "\\", "(a, b)", "don't"),
)


def random_prompt(rng: random.Random, depth: int = 2) -> str:
    """A prompt with random syntax, mostly well-formed."""
    kind = rng.random()
    if depth == 0 or kind < 0.3:
        return rng.choice(WORDS)
    if kind < 0.5:
        return f"({random_prompt(rng, depth - 1)}){rng.choice(SIGNS)}"
    if kind < 0.6:
        return f'"{rng.choice(WORDS)}"{rng.choice(SIGNS[:5])}'
    if kind < 0.7:
        return rng.choice(WORDS[:4]) + rng.choice(("+", "--", "++,", ".swap(fox)", ".swap(a, b=1)"))
    if kind < 0.8:
        both = ", ".join(f'"{random_prompt(rng, 1)}"' for _ in range(2))
        operator = rng.choice((".and", ".blend"))
        return f"({both}){operator}({rng.choice(('', '1, 0.5', '.5,.5', '1', 'a, b', '1,-1'))})"
    if kind < 0.85:
        return "".join(rng.choice(NOISE) for _ in range(rng.randint(1, 8)))
    return f"{random_prompt(rng, depth - 1)} {random_prompt(rng, depth - 1)}"


def their_parts(text: str) -> list[Any] | None:
    """For each part its prompts, shares and weight, as the library reads it; None if it fails."""
    try:
        found = parser.PromptParser().parse_conjunction(text)
    except Exception:  # noqa: BLE001 - of any kind, also those of pyparsing
        return None
    parts = []
    for prompt, weight in zip(found.prompts, found.weights, strict=True):
        blend = prompt if isinstance(prompt, parser.Blend) else None
        shares = np.array(blend.weights if blend else [1.0])
        if blend and blend.normalize_weights:
            if not shares.sum():
                return None
            shares = shares / shares.sum()
        texts = [_fragments(each) for each in (blend.prompts if blend else [prompt])]
        parts.append((texts, np.round(shares, 9).tolist(), weight))
    return parts


def _fragments(prompt: Any) -> list[tuple[str, float]]:
    found = []
    for child in prompt.children:
        each = getattr(child, "original", [child])
        found += [(fragment.text, round(fragment.weight, 9)) for fragment in each]
    return found


def our_parts(text: str) -> list[Any] | None:
    try:
        parts = parse_compel(text).parts
    except InvalidArgumentError:
        return None
    return [
        (
            [[(s.text, round(s.weight, 9)) for s in prompt] for prompt in part.prompts],
            np.round(part.shares, 9).tolist(),
            part.weight,
        )
        for part in parts
    ]


@pytest.mark.parametrize("seed", range(2))
def test_parses_as_the_library(seed: int) -> None:
    rng, compared = random.Random(seed), 0
    while compared < 50:
        text = random_prompt(rng)
        if text.count("(") > 6:  # the library's time doubles with each
            continue
        expected, found = their_parts(text), our_parts(text)
        assert (found or None) == (expected or None) or not expected, text
        assert expected is None or found is not None, text
        compared += 1


@pytest.fixture(scope="module")
def encoder(modules_once: dict[str, Any]) -> Any:
    return modules_once["text_encoder"]


@pytest.fixture(scope="module")
def modules_once(request: pytest.FixtureRequest) -> dict[str, Any]:
    modules: dict[str, Any] = request.getfixturevalue("modules")
    return modules


@pytest.fixture(scope="module")
def library(encoder: Any) -> Iterator[Any]:
    tokenizer = CLIPTokenizer.from_pretrained(MODEL_DIR / "tokenizer")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield compel.CompelForSD(SimpleNamespace(tokenizer=tokenizer, text_encoder=encoder)).compel


def expected_embeds(library: Any, texts: list[str]) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        embeds: np.ndarray = library(texts).numpy()
    return embeds


@pytest.mark.parametrize("text", PROMPTS)
def test_embeddings_equal_the_library(pipe: Pipeline, library: Any, text: str) -> None:
    found = pipe.encode([text], prompt_style="compel")
    assert_close(found, expected_embeds(library, [text]), rel=COMPONENT_REL)


def test_embeddings_of_a_batch_equal_the_library(pipe: Pipeline, library: Any) -> None:
    """The shorter ones are padded with the empty prompt."""
    texts = [PROMPTS[8], PROMPTS[2], PROMPTS[3], ""]
    found = pipe.encode(texts[1:], texts[:1], prompt_style="compel")
    assert_close(found, expected_embeds(library, texts), rel=COMPONENT_REL)


def test_random_embeddings_equal_the_library(library: Any, encoder: Any) -> None:
    tokenizer, rng = ClipTokenizer.from_folder(MODEL_DIR / "tokenizer"), random.Random(5)

    def run(input_ids: np.ndarray, mask: np.ndarray | None) -> TextEmbeds:
        with torch.inference_mode():
            masks = None if mask is None else torch.from_numpy(mask)
            return TextEmbeds(encoder(torch.from_numpy(input_ids), masks).last_hidden_state.numpy())

    compared = 0
    while compared < 20:
        text = random_prompt(rng)
        if text.count("(") > 6 or not their_parts(text):
            continue
        try:
            expected = expected_embeds(library, [text])
        except TypeError:  # a weight below 1 on an empty fragment is a mistake of the library
            continue
        found = encode_compel(tokenizer, [text], lambda i: run).embeds
        if found.shape != expected.shape:
            assert ".swap(" in text  # the library pads to the length of the other prompt
            continue
        assert_close(found, expected, rel=COMPONENT_REL)
        compared += 1


def test_images_of_a_prompt_without_syntax_are_the_plain_ones(pipe: Pipeline) -> None:
    arguments: dict[str, Any] = {"num_inference_steps": 2, "seed": 0, "height": 64, "width": 64}
    plain = pipe("a red circle", "blue", **arguments).latents
    same = pipe("a red circle", "blue", prompt_style="compel", **arguments).latents
    assert same.tobytes() == plain.tobytes()
    heavy = pipe("a red circle++", "blue", prompt_style="compel", **arguments).latents
    assert np.abs(heavy - plain).max() > 0.01


def test_package_without_the_masked_graph_says_so(pipe: Pipeline, package_copy: Path) -> None:
    from sdexport import PackageError, load_pipeline

    as_optimum_folder(package_copy)
    with load_pipeline(package_copy) as optimum:
        assert optimum.encode(["a (red)1.5 circle"], prompt_style="compel").shape == (1, 77, 96)
        with pytest.raises(PackageError, match=r"has no text_encoder/attention_mask\.onnx"):
            optimum.encode(["a (red)0.5 circle"], prompt_style="compel")


def test_sdxl_embeddings_equal_the_library(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Both text encoders, and the pooled embeddings, in which the syntax is text."""
    both = Both(made_once(tmp_path_factory, "random-sdxl", partial(build, "sdxl")))
    texts = ["a (red)1.5 circle++ on blue", "a red circle", '("red", "blue star").and()']
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = compel.CompelForSDXL(both.base)(texts)
    found = both.ours.text_encoders.encode(texts, prompt_style="compel")
    assert found.pooled is not None
    assert_close(found.embeds, expected.embeds.detach().numpy(), rel=COMPONENT_REL)
    assert_close(found.pooled, expected.pooled_embeds.detach().numpy(), rel=COMPONENT_REL)
