"""The modules and the tokenizer of the demo model, before training."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextConfig, CLIPTextModel

from sdexport.demo_model import dataset

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 77
WIDTH = 96

SCHEDULER_CONFIG = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "trained_betas": None,
    "prediction_type": "epsilon",
}
TOKENIZER_CONFIG = {
    "tokenizer_class": "CLIPTokenizer",
    "model_max_length": MAX_LENGTH,
    "bos_token": BOS,
    "eos_token": EOS,
    "unk_token": EOS,
    "pad_token": EOS,
}
MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def build_vae() -> AutoencoderKL:
    """A VAE with factor 8, four latent channels and 1.0 M parameters.

    The initial weights let it learn flat colours quickly. Normalisation removes the colour of a
    flat image, so the colour must pass through the residual path: convolutions start orthogonal,
    the residual branches at a tenth. The posterior starts narrow. After 200 steps the error is half
    of that with PyTorch's default initialisation.
    """
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=dataset.IMAGE_SIZE,
    )
    with torch.no_grad():
        for name, weight in vae.named_parameters():
            if weight.ndim == 4:
                torch.nn.init.orthogonal_(weight.view(len(weight), -1))
            if name.endswith("conv2.weight"):
                weight.mul_(0.1)
        vae.quant_conv.bias[vae.config.latent_channels :] -= 6.0
    return vae


def build_unet() -> UNet2DConditionModel:
    """A UNet for latents of 16x16, with attention at 8x8 and 4x4."""
    unet = UNet2DConditionModel(
        sample_size=dataset.IMAGE_SIZE // 8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 96, 96),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    use_plain_attention(unet)
    return unet


def use_plain_attention(model: Any) -> None:
    """Attend in single operations: the fused one takes a third of a training step on a CPU."""
    model.set_attn_processor(AttnProcessor())


def build_text_encoder(vocab_size: int) -> CLIPTextModel:
    """A text encoder of two layers; the last two ids are CLIP's special tokens."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocab_size,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            projection_dim=WIDTH,
            bos_token_id=vocab_size - 2,
            eos_token_id=vocab_size - 1,
            pad_token_id=vocab_size - 1,
        )
    )


def byte_symbols() -> list[str]:
    """The 256 characters that stand for bytes in GPT-2's and CLIP's vocabularies, in CLIP's order.

    Printable bytes are represented by themselves, the others by U+0100 and following.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = 256 - len(printable)
    return [chr(b) for b in printable] + [chr(0x100 + i) for i in range(rest)]


def every_caption_word() -> Counter[str]:
    """How often each word occurs in the captions of all one- and two-object scenes."""
    words: Counter[str] = Counter()
    for number in range(len(dataset.SINGLE_WORDINGS)):
        for single in dataset.all_singles(held_out=False):
            words.update(dataset.single_caption(single, number).replace(",", " ,").split())
    names = itertools.product(dataset.COLOURS, dataset.SHAPES, dataset.RELATIONS)
    for colour, shape, relation in names:
        pair = dataset.Pair((colour, shape), relation, (colour, shape), colour)
        for number in range(len(dataset.PAIR_WORDINGS)):
            words.update(dataset.pair_caption(pair, number).split())
    return words


def train_bpe(words: Counter[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent first, until each word is one token.

    Source: Sennrich et al. 2016, arXiv 1508.07909, algorithm 1.
    """
    pieces = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in pieces.items():
            for pair in itertools.pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for parts in pieces.values():
            i = 0
            while i + 1 < len(parts):
                if (parts[i], parts[i + 1]) == best:
                    parts[i : i + 2] = ["".join(best)]
                i += 1


def write_tokenizer(folder: Path) -> int:
    """Train the tokenizer on the captions, write CLIP's files, and return the vocabulary size."""
    folder.mkdir(parents=True, exist_ok=True)
    merges = train_bpe(every_caption_word())
    symbols = byte_symbols()
    tokens = [*symbols, *(s + "</w>" for s in symbols), *("".join(m) for m in merges), BOS, EOS]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = "".join(f"{a} {b}\n" for a, b in merges)
    (folder / "merges.txt").write_text("#version: 0.2\n" + lines, encoding="utf-8")
    write_json(folder / "tokenizer_config.json", TOKENIZER_CONFIG)
    special = {k: TOKENIZER_CONFIG[k] for k in ("bos_token", "eos_token", "unk_token", "pad_token")}
    write_json(folder / "special_tokens_map.json", special)
    return len(vocab)


def write_json(path: Path, value: object) -> None:
    """Write indented JSON with a newline at the end."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
