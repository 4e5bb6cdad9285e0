"""Token embeddings replaced and blended, before a text encoder whose table is known."""

from __future__ import annotations

import logging
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdexport import Package, PackageError, Pipeline, load_pipeline
from sdexport.runtime import component_sessions
from sdexport.runtime.component_engines import engine_path, open_component, resolve_backend
from sdexport.runtime.text.token_embeds import build_inputs_embeds, replace_tokens, token_mask
from tests.helpers.changed_package import accept_files, as_optimum_folder, edit_manifest
from tests.helpers.text import tokenizer
from tests.tolerances import BLENDED_EMBEDS_REL, EMBEDS_ABS, EMBEDS_REL

WIDTH = 3
TABLE = np.random.default_rng(0).standard_normal((tokenizer().vocab_size, WIDTH)).astype(np.float32)
PROMPT = "a large red circle on a white background"


def lookup(input_ids: np.ndarray) -> np.ndarray:
    embeds: np.ndarray = TABLE[input_ids]
    return embeds


def vectors(word: str) -> np.ndarray:
    """(tokens, WIDTH)."""
    return lookup(np.array(tokenizer().encode(word)))


def mixed(ids: np.ndarray, token_embeds: Any, encoder: tuple[int, int] = (0, 1)) -> np.ndarray:
    return build_inputs_embeds(tokenizer(), ids, token_embeds, lookup, encoder)


def test_replace_tokens_gives_the_ids_of_the_other_prompt() -> None:
    ids = tokenizer()(["a red circle, red", "a blue star"])
    replaced = replace_tokens(tokenizer(), ids[:1], {"red": "blue", ",": "!"})
    np.testing.assert_array_equal(replaced, tokenizer()(["a blue circle! blue"]))
    swapped = replace_tokens(tokenizer(), ids, {"red": "blue", "blue": "red"})
    np.testing.assert_array_equal(swapped, tokenizer()(["a blue circle, blue", "a red star"]))
    words = {"xxyy": "yyxx"}
    assert len(tokenizer().encode("xxyy")) == len(tokenizer().encode("yyxx")) > 1
    replaced = replace_tokens(tokenizer(), tokenizer()(["a xxyy xx"]), words)
    np.testing.assert_array_equal(replaced, tokenizer()(["a yyxx xx"]))


def test_token_mask_finds_every_token_of_a_word() -> None:
    ids = tokenizer()(["a red circle"])
    mask = token_mask(tokenizer(), ids, "red circle")
    assert np.flatnonzero(mask).tolist() == [2, 3]
    for word in ("blue", "", "circle red", "red " * 90):
        with pytest.raises(ValueError, match="the prompt does not contain"):
            token_mask(tokenizer(), ids, word)


@given(weights=st.tuples(st.floats(-4, 4), st.floats(-4, 4)))
def test_build_inputs_embeds_by_hand(weights: tuple[float, float]) -> None:
    ids = tokenizer()(["a red circle, red", "a blue star"])
    expected = lookup(ids)
    expected[token_mask(tokenizer(), ids, "red")] = (
        weights[0] * vectors("red")[0] + weights[1] * vectors("blue")[0]
    )
    actual = mixed(ids, {"red": dict(zip(("red", "blue"), weights, strict=True))})
    np.testing.assert_allclose(actual, expected, rtol=EMBEDS_REL, atol=EMBEDS_ABS)


def test_build_inputs_embeds_of_several_replacements() -> None:
    ids = tokenizer()(["a red circle"])
    own = np.full(WIDTH, 7, np.float32)
    actual = mixed(ids, {"red": "blue", "a": own, "circle": {"star": 1}})
    expected = lookup(tokenizer()(["a blue star"]))
    expected[0, 1] = own
    np.testing.assert_array_equal(actual, expected)


def test_build_inputs_embeds_of_words_of_several_tokens() -> None:
    count = len(vectors("xxyy"))
    assert count == len(vectors("yyxx")) > 1
    ids = tokenizer()(["a xxyy b"])
    actual = mixed(ids, {"xxyy": {"xxyy": 0.5, "yyxx": 0.5}})
    expected = lookup(ids)
    expected[0, 2 : 2 + count] = (vectors("xxyy") + vectors("yyxx")) / 2
    np.testing.assert_allclose(actual, expected, rtol=BLENDED_EMBEDS_REL)
    own = np.arange(count * WIDTH, dtype=np.float32).reshape(count, WIDTH)
    np.testing.assert_array_equal(mixed(ids, {"xxyy": own})[0, 2 : 2 + count], own)


def test_build_inputs_embeds_chooses_the_array_of_the_encoder() -> None:
    ids = tokenizer()(["a red circle"])
    wide, own = np.zeros(5, np.float32), np.ones(WIDTH, np.float32)
    actual = mixed(ids, {"red": [wide, own]}, (1, 2))
    np.testing.assert_array_equal(actual[0, 2], own)
    with pytest.raises(ValueError, match=r"expected float32 \(3\), got an array float32 \(5,\)"):
        mixed(ids, {"red": [wide, own]}, (0, 2))
    with pytest.raises(ValueError, match="an array for each of 1 text encoders, got list of 2"):
        mixed(ids, {"red": [wide, own]})


@pytest.mark.parametrize(
    ("token_embeds", "message"),
    [
        ({"blue": {"red": 1}}, "the prompt does not contain 'blue'"),
        ({"": {"red": 1}}, "the prompt does not contain ''"),
        ({"red": "xxyy"}, "'red' has 1 tokens and 'xxyy' has "),
        ({"red": {"red": 0.5, "xxyy": 0.5}}, "'red' has 1 tokens and 'xxyy' has "),
        ({"red": {"red": 0.5, "": 0.5}}, "'red' has 1 tokens and '' has 0"),
        ({"red": {}}, "'red' must map to at least one word"),
        ({"red": {"blue": math.nan}}, "weight of 'blue' in 'red' must be .* got nan"),
        ({"red": {"blue": math.inf}}, "weight of 'blue' in 'red' must be .* got inf"),
        ({"red": {"blue": "1"}}, "weight of 'blue' in 'red' must be"),
        ({"red": np.ones(4, np.float32)}, r"'red': expected float32 \(3\), got .* \(4,\)"),
        ({"red": np.ones(3)}, r"'red': expected float32 \(3\), got an array float64"),
        ({"red": np.ones((2, 3), np.float32)}, r"'red': expected float32 \(1, 3\)"),
        ({"red": np.full(3, np.nan, np.float32)}, "contains NaN or infinity"),
        ({"red": 0.5}, "'red' must map to a word, to a mapping .* got 0.5"),
        ({"red": None}, "'red' must map to a word, to a mapping .* got None"),
        ({"red": [0.5]}, r"'red': expected float32 \(1, 3\), got 0.5"),
    ],
)
def test_build_inputs_embeds_rejects_other_replacements(token_embeds: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        mixed(tokenizer()(["a red circle"]), token_embeds)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("token_embeds", ["red", ["red"], {1: "red"}])
def test_encode_rejects_token_embeds_that_are_no_mapping(pipe: Pipeline, token_embeds: Any) -> None:
    with pytest.raises(ValueError, match="token_embeds must map words"):
        pipe.encode([PROMPT], token_embeds=token_embeds)


def test_pipeline_rejects_token_embeds_with_prompt_embeds(pipe: Pipeline) -> None:
    with pytest.raises(ValueError, match="give one of them"):
        pipe(prompt_embeds=pipe.encode([PROMPT]), token_embeds={"red": "blue"})


def test_encode_with_a_replaced_word_equals_the_other_prompt(pipe: Pipeline) -> None:
    expected = pipe.encode([PROMPT.replace("red", "blue")])
    np.testing.assert_array_equal(pipe.encode([PROMPT], token_embeds={"red": "blue"}), expected)
    actual = pipe.encode([PROMPT], token_embeds={"red": {"blue": 1}})
    np.testing.assert_array_equal(actual, expected)
    vector = pipe.text_encoders.token_embeds("blue")
    assert vector.shape == (1, expected.shape[-1]) and vector.dtype == np.float32
    np.testing.assert_array_equal(pipe.encode([PROMPT], token_embeds={"red": vector}), expected)


def test_encode_blends_words_in_negative_and_long_prompts(pipe: Pipeline) -> None:
    long = "star " * 80 + "(red:1.5)"
    mix = {"red": {"blue": 1.0}}
    actual = pipe.encode([long], ["red"], token_embeds=mix, prompt_weights=True)
    expected = pipe.encode([long.replace("red", "blue")], ["blue"], prompt_weights=True)
    np.testing.assert_array_equal(actual, expected)
    skipped = pipe.encode(["red"], token_embeds=mix, clip_skip=1)
    np.testing.assert_array_equal(skipped, pipe.encode(["blue"], clip_skip=1))


def test_token_embeds_rejects_other_components_and_empty_words(pipe: Pipeline) -> None:
    with pytest.raises(ValueError, match="no text encoder 'unet'; the package has text_encoder"):
        pipe.text_encoders.token_embeds("red", "unet")
    with pytest.raises(ValueError, match="'' has no tokens"):
        pipe.text_encoders.token_embeds("")


@pytest.fixture
def image(pipe: Pipeline) -> np.ndarray:
    return generate(pipe)


def generate(pipe: Pipeline) -> np.ndarray:
    mix = {"red": {"red": 0.5, "blue": 0.5}}
    result = pipe(PROMPT, "a star", token_embeds=mix, num_inference_steps=2, seed=0)
    return np.asarray(result.images[0])


def test_low_memory_gives_the_same_image(package: Path, image: np.ndarray) -> None:
    with load_pipeline(package, verify=False, low_memory=True, max_batch=1) as small:
        np.testing.assert_array_equal(generate(small), image)


def test_pipeline_opens_the_token_graphs_when_needed_and_closes_them(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: dict[str, Any] = {}

    def watched(package: Package, graph: str, *arguments: Any, **options: Any) -> Any:
        opened[graph] = open_component(package, graph, *arguments, **options)
        return opened[graph]

    monkeypatch.setattr(component_sessions, "open_component", watched)
    with load_pipeline(package, verify=False) as fresh:
        fresh.encode([PROMPT], token_embeds={"red": "blue"})
        assert list(opened) == ["text_encoder"]
    opened.clear()
    with load_pipeline(package, verify=False) as fresh:
        fresh.encode([PROMPT], token_embeds={"red": {"blue": 1}})
        assert list(opened) == ["text_encoder.token_embedding", "text_encoder.inputs_embeds"]
    assert all(session._closed for session in opened.values())


def test_package_without_the_token_graphs(package_copy: Path) -> None:
    """In an older package, or one of Optimum, words can be replaced but not blended."""
    further = [f for f in package_copy.glob("text_encoder/*.onnx") if f.name != "model.onnx"]
    further += package_copy.glob("reference/text_encoder.*.npz")
    for path in further:
        if path.name != "text_encoder.npz":
            path.unlink()

    def forget(data: dict[str, Any]) -> None:
        for entry in (data, data["components"]["text_encoder"]):
            entry["files"] = [r for r in entry["files"] if (package_copy / r["path"]).exists()]

    edit_manifest(package_copy, forget)
    with load_pipeline(package_copy) as old:
        expected = old.encode([PROMPT.replace("red", "blue")])
        np.testing.assert_array_equal(old.encode([PROMPT], token_embeds={"red": "blue"}), expected)
        with pytest.raises(PackageError, match=r"has no text_encoder/token_embedding\.onnx") as e:
            old.encode([PROMPT], token_embeds={"red": {"blue": 1}})
    assert "\n" not in str(e.value) and "sdexport export" in str(e.value)
    as_optimum_folder(package_copy)
    with (
        load_pipeline(package_copy) as optimum,
        pytest.raises(PackageError, match=r"has no text_encoder/token_embedding\.onnx"),
    ):
        optimum.encode([PROMPT], token_embeds={"red": {"blue": 1}})


def test_package_checks_the_external_data_of_token_graphs(package_copy: Path) -> None:
    import onnx

    path = package_copy / "text_encoder" / "inputs_embeds.onnx"
    model = onnx.load(path, load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.external_data)
    next(entry for entry in tensor.external_data if entry.key == "location").value = "other"
    path.write_bytes(model.SerializeToString())
    shutil.copyfile(package_copy / "text_encoder" / "model.onnx_data", path.with_name("other"))
    accept_files(package_copy)
    with pytest.raises(PackageError, match=r"text_encoder/other is not listed"):
        Package.load(package_copy, verify=False)


def test_token_graphs_without_a_plan_use_another_backend(
    package: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = Package.load(package, verify=False)
    assert resolve_backend(loaded, "text_encoder", "tensorrt", tmp_path) == "tensorrt"
    with caplog.at_level(logging.INFO, "sdexport.runtime.component_engines"):
        taken = resolve_backend(loaded, "text_encoder.inputs_embeds", "tensorrt", tmp_path)
    assert taken in ("onnxruntime", "openvino") and "tensorrt takes" in caplog.text
    plan = engine_path(loaded, "text_encoder.inputs_embeds", "tensorrt", tmp_path)
    plan.parent.mkdir()
    plan.write_bytes(b"plan")
    assert resolve_backend(loaded, "text_encoder.inputs_embeds", "tensorrt", tmp_path) == "tensorrt"
    with load_pipeline(package, "tensorrt", verify=False, engine_dir=tmp_path / "no") as pipe:
        assert pipe.text_encoders.token_embeds("red").shape[0] == 1
