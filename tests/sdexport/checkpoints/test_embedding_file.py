"""Layouts of textual-inversion files (rows C11 and C13), and embeddings bundled with a LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sdexport import ClipTokenizer
from sdexport.checkpoints.sources import Options, open_source
from sdexport.checkpoints.textual_inversion import (
    Embedding,
    embedding_sources,
    join_words,
    read_words,
)
from sdexport.engines.errors import CheckpointError, InvalidArgumentError, SDExportError
from tests.helpers.embedding_vectors import WIDTH, vectors
from tests.helpers.file_kinds import file_kind
from tests.helpers.lora_files import ATTENTION, random_lora, save_kohya

SD1 = {"text_encoder": 768}
SDXL = {"text_encoder": 768, "text_encoder_2": 1280}
REFINER = {"text_encoder_2": 1280}


def read(widths: Mapping[str, int], *arguments: tuple[Path, str | None]) -> list[Embedding]:
    words = [
        word
        for path, name in arguments
        for word in read_words(path, name, widths, allow_pickle=True)
    ]
    return join_words(words, list(widths))


def saved(path: Path, content: Any, metadata: dict[str, str] | None = None) -> Path:
    if path.suffix in (".safetensors", ".pti"):
        save_file(content, path, metadata=metadata)
    else:
        torch.save(content, path)
    return path


def equal(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[part], expected[part].float().reshape(-1, expected[part].shape[-1]))
        for part in expected
    )


ONE = vectors(2, width=768)


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        pytest.param(
            "learned_embeds.safetensors",
            {"<cat>": ONE},
            "<cat>",
            marks=file_kind(
                "embedding",
                "diffusers' learned_embeds",
                recognised="one key, which is the word",
                result="added; the word is the key",
            ),
        ),
        pytest.param(
            "style.safetensors",
            {"emb_params": ONE},
            "style",
            marks=file_kind(
                "embedding",
                "AUTOMATIC1111, .safetensors",
                recognised="`emb_params`",
                result="added; the word is the file's name",
            ),
        ),
        pytest.param(
            "style.safetensors",
            {"clip_l": ONE},
            "style",
            marks=file_kind(
                "embedding",
                "one text encoder, as ComfyUI and OneTrainer name it",
                recognised="`clip_l` alone; `clip_h` for SD 2",
                result="added; the word is the file's name",
            ),
        ),
        ("style.safetensors", {"clip_h": ONE}, "style"),
        ("style.safetensors", {"*": ONE}, "style"),
        pytest.param(
            "a1111.pt",
            {"string_to_param": {"*": ONE}, "string_to_token": {"*": 265}, "name": "<style>"},
            "<style>",
            marks=file_kind(
                "embedding",
                "AUTOMATIC1111 and the original implementation, .pt",
                recognised="`string_to_param`; needs `--allow-pickle`",
                result="added; the word is its `name`, otherwise the file's name",
            ),
        ),
        ("rinongal.pt", {"string_to_param": {"*": ONE}}, "rinongal"),
        ("other.pt", {"string_to_param": {"<x>": ONE}, "name": None}, "other"),
        ("flat.bin", {"<flat>": ONE}, "<flat>"),
        ("bare.pt", ONE, "bare"),
        ("half.safetensors", {"emb_params": ONE.half()}, "half"),
        ("fp8.safetensors", {"emb_params": ONE.to(torch.float8_e4m3fn)}, "fp8"),
        ("param.safetensors", {"string_to_param.*": ONE}, "param"),
        ("double.safetensors", {"emb_params": ONE.double()}, "double"),
        ("row.safetensors", {"<row>": ONE[0].clone()}, "<row>"),
    ],
)
def test_layouts(name: str, content: Any, word: str, tmp_path: Path) -> None:
    """Row C11: the word of a file whose key names a text encoder is the file's name."""
    path = saved(tmp_path / name, content)
    (embedding,) = read(SD1, (path, None))
    assert embedding.word == word
    rows = content if isinstance(content, torch.Tensor) else next(iter(content.values()))
    rows = next(iter(rows.values())) if isinstance(rows, dict) else rows
    assert equal(embedding.vectors, {"text_encoder": rows})
    (embedding,) = read(SD1, (path, "<other>"))
    assert embedding.word == "<other>"


@pytest.mark.parametrize("old", [False, True])
def test_parameters_of_the_original_implementation(old: bool, tmp_path: Path) -> None:
    """PyTorch before 1.12 stored the class without the attribute that its methods read."""
    params = torch.nn.ParameterDict({"*": torch.nn.Parameter(ONE.clone())})
    if old:
        del params._keys
    content = {"string_to_param": params, "string_to_token": {"*": torch.tensor(265)}}
    path = saved(tmp_path / "embeddings.pt", content)
    (embedding,) = read(SD1, (path, None))
    assert embedding.word == "embeddings" and equal(embedding.vectors, {"text_encoder": ONE})


@file_kind(
    "embedding",
    "folder of a training script of diffusers",
    recognised="`learned_embeds.safetensors`, `learned_embeds_2.safetensors`, or a single file",
    result="added",
)
def test_folders(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected learned_embeds.*, got none"):
        embedding_sources(str(tmp_path))
    first = saved(tmp_path / "b.safetensors", {"<x>": ONE})
    assert embedding_sources(f"{tmp_path}:<y>") == [(first, "<y>")]
    saved(tmp_path / "c.safetensors", {"<x>": ONE})
    with pytest.raises(CheckpointError, match=r"got b\.safetensors, c\.safetensors"):
        embedding_sources(str(tmp_path))
    old = saved(tmp_path / "learned_embeds.bin", {"<x>": ONE})
    assert embedding_sources(str(tmp_path)) == [(old, None)]
    small = saved(tmp_path / "learned_embeds.safetensors", {"<x>": ONE})
    large = saved(tmp_path / "learned_embeds_2.safetensors", {"<x>": vectors(2, 1, width=1280)})
    assert embedding_sources(str(tmp_path)) == [(small, None), (large, None)]
    (embedding,) = read(SDXL, *embedding_sources(str(tmp_path)))
    assert embedding.word == "<x>" and len(embedding.vectors) == 2


@file_kind(
    "embedding",
    "SDXL",
    recognised="`clip_l` and `clip_g`",
    result="added; the word is the file's name",
)
def test_sdxl(tmp_path: Path) -> None:
    pair = {"clip_l": vectors(2, width=768), "clip_g": vectors(2, width=1280)}
    path = saved(tmp_path / "style.safetensors", pair)
    (embedding,) = read(SDXL, (path, None))
    assert embedding.tokens == ["style", "style_1"]
    expected = {"text_encoder": pair["clip_l"], "text_encoder_2": pair["clip_g"]}
    assert equal(embedding.vectors, expected)


@file_kind(
    "embedding",
    "SDXL in two files, one for each text encoder",
    recognised="width 768 or 1280, or `clip_l` and `clip_g`; both files have the same word",
    result="added as one word",
)
@pytest.mark.parametrize(
    ("first", "second", "word"),
    [
        ("clip_l", "clip_g", "<style>"),
        ("emb_params", "emb_params", "<style>"),
        ("<style>", "<style>", None),
        ("<a>", "<b>", "<style>"),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_two_files_of_one_word(
    first: str, second: str, word: str | None, swapped: bool, tmp_path: Path
) -> None:
    """Row C13."""
    small, large = vectors(2, width=768), vectors(2, 1, width=1280)
    files = [
        (saved(tmp_path / "learned_embeds.safetensors", {first: small}), word),
        (saved(tmp_path / "learned_embeds_2.safetensors", {second: large}), word),
    ]
    (embedding,) = read(SDXL, *(files[::-1] if swapped else files))
    assert embedding.word == "<style>"
    assert equal(embedding.vectors, {"text_encoder": small, "text_encoder_2": large})
    assert len(embedding.paths) == 2


@file_kind(
    "embedding",
    "half of an SDXL embedding, or one of SD 1 on SDXL",
    recognised="vectors for one of the two text encoders",
    result="rejected",
    says="it holds vectors for the text_encoder alone",
)
def test_one_of_two_files(tmp_path: Path, says: str) -> None:
    path = saved(tmp_path / "style.safetensors", {"emb_params": ONE})
    with pytest.raises(CheckpointError, match=f"{says}.*with the same word: FILE:style"):
        read(SDXL, (path, None))
    other = saved(tmp_path / "other.safetensors", {"emb_params": vectors(3, width=1280)})
    with pytest.raises(CheckpointError, match=r"2 for the text_encoder and 3 for the text_enc"):
        read(SDXL, (path, "<x>"), (other, "<x>"))


@file_kind(
    "embedding",
    "pivotal tuning (embeddings.pti of cog-sdxl)",
    recognised="`text_encoders_0` and `text_encoders_1`",
    result="added as the words `<s0>`, `<s1>`, ..., or as one word with FILE:WORD",
)
def test_pivotal_tuning(tmp_path: Path) -> None:
    """Row C13."""
    small, large = vectors(2, width=768), vectors(2, 1, width=1280)
    content = {"text_encoders_0": small, "text_encoders_1": large}
    path = saved(tmp_path / "embeddings.pti", content)
    first, second = read(SDXL, (path, None))
    assert [first.word, second.word] == ["<s0>", "<s1>"]
    assert equal(second.vectors, {"text_encoder": small[1:], "text_encoder_2": large[1:]})
    (embedding,) = read(SDXL, (path, "TOK"))
    assert embedding.tokens == ["TOK", "TOK_1"]


@file_kind(
    "embedding",
    "several words in one file",
    recognised="more than one key, and each is a word",
    result="added; the words are the keys",
)
def test_several_words(tmp_path: Path) -> None:
    content = {"<a>": vectors(1, width=768), "<b>": vectors(2, 1, width=768)}
    path = saved(tmp_path / "words.safetensors", content)
    embeddings = read(SD1, (path, None))
    assert [e.tokens for e in embeddings] == [["<a>"], ["<b>", "<b>_1"]]
    with pytest.raises(InvalidArgumentError, match=r"several words \(<a>, <b>\); omit '<x>'"):
        read(SD1, (path, "<x>"))


@pytest.mark.parametrize(
    ("content", "widths", "message"),
    [
        ({"clip_l": ONE, "clip_g": vectors(2, width=1280)}, SD1, "for the text_encoder_2 are not"),
        ({"clip_l": ONE, "t5xxl": vectors(2, width=4096)}, SD1, "not used: t5xxl, for a T5"),
        ({"clip_l": ONE, "noise": vectors(2, width=768)}, SD1, "not used: noise, of unknown mean"),
        ({"clip_l": ONE, "clip_g": vectors(2, width=1280)}, REFINER, "for the text_encoder are n"),
    ],
)
@file_kind(
    "embedding",
    "vectors for a text encoder that the checkpoint does not have",
    recognised="`clip_g` on SD 1, `t5xxl`",
    result="added without them, with a warning",
)
def test_vectors_that_are_not_used_are_named(
    content: dict[str, torch.Tensor],
    widths: dict[str, int],
    message: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = saved(tmp_path / "a.safetensors", content)
    (embedding,) = read(widths, (path, None))
    assert list(embedding.vectors) == list(widths)
    (line,) = caplog.messages
    assert line.startswith(f"{path}: ") and message in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(
            {"clip_l": ONE, "clip_l_out": ONE.clone()},
            "",
            marks=file_kind(
                "embedding",
                "vectors for the output of a text encoder (OneTrainer)",
                recognised="`clip_l_out`, `clip_g_out`, `emb_params_out`",
                result="rejected",
                says="it holds vectors for the output of a text encoder",
            ),
        ),
        pytest.param(
            {"<a>": vectors(1, width=1024)},
            "",
            marks=file_kind(
                "embedding",
                "of another family",
                recognised="the width: 768 SD 1, 1024 SD 2, 768 and 1280 SDXL, 4096 T5",
                result="rejected",
                says="the embedding is made for Stable Diffusion 2",
            ),
        ),
        pytest.param(
            {"string_to_param": {"a": ONE, "b": ONE}},
            "",
            marks=file_kind(
                "embedding",
                "several entries of string_to_param",
                recognised="`string_to_param`",
                result="rejected",
                says="expected one entry of string_to_param, got a, b",
            ),
        ),
    ],
)
def test_embeddings_that_are_rejected(
    content: Any, message: str, says: str, tmp_path: Path
) -> None:
    path = saved(tmp_path / ("a.pt" if "string_to_param" in content else "a.safetensors"), content)
    with pytest.raises(CheckpointError) as error:
        read(SD1, (path, None))
    assert says in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    ("content", "widths", "message"),
    [
        ({"<a>": vectors(1, width=4096)}, SD1, "made for a T5 text encoder"),
        ({"<a>": vectors(1, width=1280)}, SD1, "made for the second text encoder of Stable"),
        ({"<a>": vectors(1, width=5)}, SD1, "got vectors of 5; .* for another family"),
        (
            {"emb_params": ONE[None]},
            SD1,
            r"of one or two dimensions, got emb_params of .*1, 2, 768",
        ),
        ({"<a>": ONE.long()}, SD1, "expected floating-point vectors, got torch.int64"),
        ({"<a>": torch.zeros(0, 768)}, SD1, "expected 1 to 75 vectors, got 0"),
        ({"<a>": ONE / 0}, SD1, "holds NaN or infinity"),
        ({"clip_g": vectors(1, width=1280)}, SD1, "none of its vectors are for the text_encoder"),
        ({"clip_l": ONE}, {"text_encoder": 1024}, "expected vectors of 1024 .* Stable Diffusion 1"),
        ({"clip_l": ONE, "clip_g": vectors(1, width=1280)}, SDXL, "for each encoder, got 1 and 2"),
        ({"emb_params": ONE}, {"text_encoder": 768, "text_encoder_2": 768}, "does not say which"),
    ],
)
def test_damaged_embeddings(
    content: Any, widths: dict[str, int], message: str, tmp_path: Path
) -> None:
    path = saved(tmp_path / "a.safetensors", content)
    with pytest.raises(SDExportError, match=message) as error:
        read(widths, (path, None))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["string_to_param.*", "clip_l"])
@file_kind(
    "lora",
    "embeddings that are bundled with a LoRA",
    recognised="`bundle_emb.WORD.*`",
    result="added as words; a word that exists already is left out with a warning",
)
def test_bundled_embeddings_become_words(
    key: str, checkpoint: Path, modules: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Row C12."""
    path = save_kohya(tmp_path / "a.safetensors", random_lora(modules, ATTENTION), 1.0)
    with_words(path, {f"bundle_emb.my.word.{key}": vectors(2), f"bundle_emb.a.{key}": vectors(1)})
    opened = open_source(checkpoint, options=Options(lora=(str(path),)))
    tokenizer = ClipTokenizer.from_folder(opened.folder / "tokenizer")
    assert tokenizer.encode("my.word") == [597] and tokenizer.vocab_size == 599
    weight = opened.load("text_encoder").get_input_embeddings().weight
    assert torch.equal(weight[597:], vectors(2))
    assert opened.source["embedding.1.word"] == "my.word"
    assert caplog.messages == [
        f"{path}: its bundled embedding of 'a' is not used: there is a token 'a' already"
    ]
    own = saved(tmp_path / "my.word.safetensors", {"emb_params": vectors(1, 1)})
    opened = open_source(checkpoint, options=Options(lora=(str(path),), embedding=(str(own),)))
    assert torch.equal(
        opened.load("text_encoder").get_input_embeddings().weight[597:], vectors(1, 1)
    )
    assert "embedding of 'my.word' is not used" in caplog.messages[-1]


def with_words(path: Path, more: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import load_file

    save_file(load_file(path) | more, path)


def test_two_files_are_recorded(tmp_path: Path, checkpoint: Path) -> None:
    path = saved(tmp_path / "<x>.safetensors", {"emb_params": vectors(1, width=WIDTH)})
    opened = open_source(checkpoint, options=Options(embedding=(str(path),)))
    assert opened.source["embedding.1.word"] == "<x>"
    assert len(opened.source["embedding.1.sha256"]) == 64
