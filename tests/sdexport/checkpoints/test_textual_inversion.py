"""Textual inversion: the same ids and hidden states as diffusers, and errors."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import save_file

from sdexport import ClipTokenizer
from sdexport import exporter as export_module
from sdexport.checkpoints.sources import Options, open_source
from sdexport.checkpoints.textual_inversion import (
    Embedding,
    add_vectors,
    join_words,
    parse_embedding,
    read_words,
    tokens_of,
)
from sdexport.checkpoints.tokenizer_edits import add_tokens
from sdexport.demo_model import MODEL_DIR
from sdexport.engines.errors import InvalidArgumentError, SDExportError
from tests.helpers.embedding_vectors import WIDTH, vectors
from tests.helpers.original_layout import SMALL, random_modules

PROMPTS = (
    "a <cat-toy> on a red square",
    "a<cat-toy>, <CAT-TOY>! and <cat-toy>_1x",
    "MyStyle mystyle mystyles",
    "a red circle",
    "<style> <style> <|endoftext|> <style>_2",
)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Every layout, and pickles of them."""
    paths = {
        name: tmp_path / name
        for name in ("learned_embeds.safetensors", "MyStyle.safetensors", "a1111.pt", "flat.bin")
    }
    save_file({"<cat-toy>": vectors(1)[0].clone()}, paths["learned_embeds.safetensors"])
    save_file({"emb_params": vectors(1, 1).half()}, paths["MyStyle.safetensors"])
    content = {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors(3, 2)}}
    torch.save(content | {"name": "<style>", "step": 100}, paths["a1111.pt"])
    torch.save({"<flat>": vectors(2, 3)}, paths["flat.bin"])
    return paths


def read(paths: Iterable[Path], widths: dict[str, int]) -> list[Embedding]:
    words = [word for path in paths for word in read_words(path, None, widths, allow_pickle=True)]
    return join_words(words, list(widths))


def pipeline(modules: dict[str, Any]) -> Any:
    return diffusers.StableDiffusionPipeline(
        **{name: copy.deepcopy(module) for name, module in modules.items()},
        tokenizer=transformers.CLIPTokenizer.from_pretrained(MODEL_DIR / "tokenizer"),
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def test_ids_and_hidden_states_equal_those_of_diffusers(
    checkpoint: Path, modules: dict[str, Any], files: dict[str, Path]
) -> None:
    pipe = pipeline(modules)
    pipe.load_textual_inversion(str(files["learned_embeds.safetensors"]))
    pipe.load_textual_inversion(str(files["MyStyle.safetensors"]), token="MyStyle")
    for name in ("a1111.pt", "flat.bin"):
        state = torch.load(files[name], weights_only=True)
        pipe.load_textual_inversion(state)
    options = Options(embedding=tuple(map(str, files.values())), allow_pickle=True)
    opened = open_source(checkpoint, options=options)
    ours = ClipTokenizer.from_folder(opened.folder / "tokenizer")
    theirs = transformers.CLIPTokenizer.from_pretrained(opened.folder / "tokenizer")
    encoder = opened.load("text_encoder")
    assert opened.configs["text_encoder"].vocab_size == len(pipe.tokenizer) == 597 + 1 + 1 + 3 + 2
    for prompt in PROMPTS:
        prompt = pipe.maybe_convert_prompt(prompt, pipe.tokenizer)
        expected = pipe.tokenizer(prompt, padding="max_length", max_length=77, truncation=True)
        assert ours([prompt])[0].tolist() == expected.input_ids
        again = theirs(prompt, padding="max_length", max_length=77, truncation=True)
        assert again.input_ids == expected.input_ids
        ids = torch.tensor([expected.input_ids])
        with torch.no_grad():
            result, wanted = encoder(ids), pipe.text_encoder(ids)
        assert torch.equal(result.last_hidden_state, wanted.last_hidden_state)


@pytest.mark.parametrize("layout", ["plain", "decoder", "legacy", "tokenizer.json", "saved"])
def test_both_tokenizers_split_the_words(layout: str, files: Any, tmp_path: Path) -> None:
    """In every way in which a folder can store added tokens."""
    folder = shutil.copytree(MODEL_DIR / "tokenizer", tmp_path / "tokenizer")
    if layout == "decoder":
        config = json.loads((folder / "tokenizer_config.json").read_text())
        decoder = {
            str(i): {"content": token, "special": True, "normalized": False}
            for i, token in ((595, "<|startoftext|>"), (596, "<|endoftext|>"))
        }
        (folder / "tokenizer_config.json").write_text(
            json.dumps(config | {"added_tokens_decoder": decoder})
        )
    if layout == "legacy":
        (folder / "added_tokens.json").write_text('{"<old>": 597}')
    if layout in ("tokenizer.json", "saved"):
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
        tokenizer.add_tokens(["<old>"])
        shutil.rmtree(folder)
        tokenizer.save_pretrained(folder)
        if layout == "tokenizer.json":
            (folder / "tokenizer_config.json").unlink()
    widths = {"text_encoder": WIDTH}
    embeddings = read(files.values(), widths)
    first = 597 if layout in ("plain", "decoder") else 598
    ids = add_tokens(folder, tokens_of(embeddings))
    assert list(ids.values()) == list(range(first, first + 7))
    ours = ClipTokenizer.from_folder(folder)
    theirs = transformers.CLIPTokenizer.from_pretrained(folder)
    for prompt in (*PROMPTS, "an <old> <flat>_1"):
        assert ours.encode(prompt) == theirs(prompt, add_special_tokens=False).input_ids
    mixin = diffusers.loaders.TextualInversionLoaderMixin()
    for prompt in (*PROMPTS, "a <style> and <toy>, <style>", "plain"):
        assert ours.expand(prompt) == mixin.maybe_convert_prompt(prompt, theirs)
    assert ours.expand("a <style>!") == "a <style> <style>_1 <style>_2!"


def test_words_become_part_of_the_package(
    checkpoint: Path, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = files["learned_embeds.safetensors"]
    opened = open_source(checkpoint, options=Options(embedding=(f"{path}:<toy>",)))
    (tmp_path / "package").mkdir()
    export_module._copy_configuration(opened, tmp_path / "package")
    tokenizer = ClipTokenizer.from_folder(tmp_path / "package" / "tokenizer")
    assert tokenizer.encode("<toy>") == [597]
    assert opened.source["embedding.1.word"] == "<toy>"
    assert len(opened.source["embedding.1.sha256"]) == 64
    assert str(tmp_path) not in str(opened.source)


def test_sdxl_has_vectors_for_each_encoder(tmp_path: Path) -> None:
    family = SMALL[2]
    modules = random_modules(family)
    widths = {"text_encoder": 32, "text_encoder_2": 40}
    pair = {"clip_l": vectors(2, width=32), "clip_g": vectors(2, width=40)}
    save_file(pair, tmp_path / "style.safetensors")
    (embedding,) = read([tmp_path / "style.safetensors"], widths)
    assert embedding.tokens == ["style", "style_1"]
    for part, key in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g")):
        encoder = copy.deepcopy(modules[part])
        add_vectors(part, encoder, [embedding], {"style": 597, "style_1": 598}, eos=596)
        weight = encoder.get_input_embeddings().weight
        assert torch.equal(weight[597:], pair[key])
        assert torch.equal(weight[:597], modules[part].get_input_embeddings().weight)
        assert encoder.config.vocab_size == 599


def test_pooled_output_is_that_of_the_end_token(modules: dict[str, Any], files: Any) -> None:
    """Old configurations give the end token as 2 and mean the largest id."""
    old = transformers.CLIPTextConfig(
        **(modules["text_encoder"].config.to_dict() | {"eos_token_id": 2})
    )
    encoder = transformers.CLIPTextModel(old).eval()
    encoder.load_state_dict(modules["text_encoder"].state_dict())
    (embedding,) = read([files["learned_embeds.safetensors"]], {"text_encoder": WIDTH})
    add_vectors("text_encoder", encoder, [embedding], {"<cat-toy>": 597}, eos=596)
    with torch.no_grad():
        result = encoder(torch.tensor([[595, 320, 597, 343, 596, 596]]))
    assert torch.equal(result.pooler_output, result.last_hidden_state[:, 4])


def fails(checkpoint: Path, embedding: str, message: str, *more: str) -> None:
    with pytest.raises((SDExportError, FileNotFoundError), match=message) as error:
        open_source(checkpoint, options=Options(embedding=(*more, embedding)))
    assert "\n" not in str(error.value)


def test_errors(checkpoint: Path, files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "word.safetensors"
    good = files["learned_embeds.safetensors"]
    fails(checkpoint, "nowhere", "no embedding at nowhere: expected FILE, FOLDER or FILE:WORD")
    fails(checkpoint, str(files["a1111.pt"]), "is a pickle.*--allow-pickle")
    fails(checkpoint, str(good), "has a token '<cat-toy>' already; give another word", str(good))
    with pytest.raises(InvalidArgumentError, match=r"embeds.*: the tokenizer has a token 'a'"):
        open_source(checkpoint, options=Options(embedding=(f"{good}:a",)))
    fails(checkpoint, f"{good}:<|endoftext|>", "already")
    fails(checkpoint, f"{good}: ", "' ' is not a word")
    fails(checkpoint, f"{good}:a\nb", "is not a word")
    save_file({"<a>": vectors(1, width=768)}, path)
    message = "expected vectors of 96 for the text_encoder, got vectors of 768; .* for Stable Diff"
    fails(checkpoint, str(path), message)
    save_file({"clip_l": vectors(1), "clip_g": vectors(1)}, path)
    open_source(checkpoint, options=Options(embedding=(str(path),)))
    save_file({"<a>": torch.zeros(1, 2, WIDTH)}, path)
    fails(checkpoint, str(path), "expected a textual-inversion embedding")
    save_file({"<a>": vectors(76)}, path)
    fails(checkpoint, str(path), "expected 1 to 75 vectors.*got 76")
    save_file({"<a>": vectors(1) * torch.nan}, path)
    fails(checkpoint, str(path), "holds NaN")
    save_file({"lora_unet_x.lora_down.weight": vectors(1)[0], "b": vectors(1)}, path)
    fails(checkpoint, str(path), "is a LoRA; expected a textual-inversion")
    path.write_bytes(b"")
    fails(checkpoint, str(path), "is empty")


def test_word_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.pt", "a:b.pt"):
        Path(name).write_text("")
        assert parse_embedding(name) == (Path(name), None)
        assert parse_embedding(f"{name}:<word>") == (Path(name), "<word>")
