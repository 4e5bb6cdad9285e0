"""What the demo model is trained with: pairs, outlines, styles, noise, and its last stage."""

from __future__ import annotations

import itertools
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import CLIPTokenizer

from sdexport.demo_model import (
    MODEL_DIR,
    dataset,
    evaluate_adapters,
    judge,
    noisy_latents,
    pair_order,
    style_lora,
    styles,
    training,
)
from sdexport.demo_model import evaluate as evaluation
from sdexport.demo_model.adapter_training import Outlines
from sdexport.demo_model.caption_meaning import ANSWERS, CAPTION_TOKENS, meaning
from tests.tolerances import (
    PREDICTED_LATENTS_ABS,
    STYLE_AMOUNT_ABS,
    STYLED_OVERLAP,
    assert_close,
)


def test_swapped_pairs_differ_in_the_order_alone() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        examples = dataset.sample_swapped_pairs(rng)
        found = [judge.detect(dataset.render(scene)) for scene, _ in examples]
        names = [sorted((s.colour, s.shape) for s in objects) for _, objects in found]
        assert found[0][0] == found[1][0] and names[0] == names[1]
        captions = [caption for _, each in examples for caption in each]
        assert len(set(captions)) == len(captions) >= 2
        ways = [
            np.subtract((a.x, a.y), (b.x, b.y)) for a, b in (scene.shapes for scene, _ in examples)
        ]
        assert ways[0] @ ways[1] < 0


def test_every_caption_of_a_swapped_pair_is_right() -> None:
    """Each statement is judged against its scene, also the one from the other object."""
    rng = np.random.default_rng(1)
    pair = dataset.Pair(("red", "circle"), "left of", ("blue", "star"), "white")
    image = dataset.render(dataset.place_pair(pair, rng))
    for right in (pair, dataset.restated(pair)):
        assert all(judge.judge_pair(image, right).values())
        assert not judge.judge_pair(image, dataset.swapped(right))["relation"]


def test_outlines_follow_the_shapes() -> None:
    """White on the edge, black in the middle and outside."""
    circle = dataset.Shape("circle", (0, 0, 0), 64, 64, 30)
    lines = dataset.render_outlines(dataset.Scene((255, 255, 255), (circle,)))
    assert lines.shape == (128, 128, 3) and lines.dtype == np.uint8
    assert lines[64, 94].min() >= 250
    assert not lines[60:68, 60:68].any() and not lines[:30].any()


def test_outlines_of_scenes_by_their_numbers() -> None:
    rng = np.random.default_rng(8)
    scenes = [dataset.sample_scene(rng)[0] for _ in range(3)]
    found = Outlines(scenes).draw(np.array([2, 0, 2]))
    assert found.shape == (3, 3, 128, 128) and found.dtype == torch.float32
    for number, row in zip((2, 0, 2), found, strict=True):
        drawn = torch.from_numpy(dataset.render_outlines(scenes[number])).permute(2, 0, 1)
        assert torch.equal(row, (drawn > 127).float())


@pytest.mark.parametrize("style", styles.STYLES)
def test_amount_of_a_style(style: str) -> None:
    """0 in plain images, and what images in the style were drawn with; for all colours."""
    rng = np.random.default_rng(2)
    for _ in range(30):
        scene, _ = dataset.sample_scene(rng)
        images = {amount: styles.render_in_style(scene, style, amount) for amount in (0.5, 1.0)}
        images[0.0] = dataset.render(scene)
        for amount, image in images.items():
            found = styles.style_amount(image, scene, style)
            assert found == pytest.approx(amount, abs=STYLE_AMOUNT_ABS), scene


def test_stripes_are_drawn_stronger_unless_the_background_is_like_them() -> None:
    """A light green stripe on white would hardly be seen; a dark yellow one is."""
    green, yellow = (
        dataset.Shape("circle", dataset.COLOURS[name], x, 64, 20)
        for name, x in (("green", 30), ("yellow", 90))
    )

    def amount(*shapes: dataset.Shape, style: str = "striped") -> float:
        return style_lora.training_amount(dataset.Scene(dataset.COLOURS["white"], shapes), style)

    assert amount(yellow) == style_lora.STRONGER > 1
    assert amount(green) == amount(yellow, green) == 1
    assert amount(yellow, style="soft") == 1


def test_error_counts_more_where_the_style_changes_the_latents() -> None:
    rng = np.random.default_rng(7)
    scene, _ = dataset.sample_scene(rng)
    stripes = style_lora.cell_weights(scene, "striped", 16)
    objects = torch.from_numpy(dataset.render(scene) != scene.background).any(dim=-1)
    background = ~nn.functional.adaptive_max_pool2d(objects.float()[None], 16).bool()
    assert (stripes[background] == 1).all() and stripes.max() > 1
    assert (style_lora.cell_weights(scene, "soft", 16) > 1).all()  # the background too
    latents = torch.randn(2, 4, 16, 16)
    ids = torch.tensor([[1, 5, 2]]).expand(2, 3)
    batch = noisy_latents.draw_noise(latents, ids, torch.Generator().manual_seed(0))
    wrong = batch.noise + 0.1 * background
    plain, weighted = (
        noisy_latents.weighted_error(wrong, batch, cells=cells) for cells in (1.0, stripes)
    )
    assert weighted == plain
    assert noisy_latents.weighted_error(batch.noise + 0.1, batch, cells=stripes) > plain


@pytest.mark.parametrize("style", [None, *styles.STYLES])
def test_overlap_finds_the_objects_in_every_style(style: str | None) -> None:
    rng = np.random.default_rng(3)
    for case in evaluate_adapters.held_out_cases(24):
        render = dataset.render if style is None else lambda s: styles.render_in_style(s, style)
        found = evaluate_adapters.overlaps(render(case.scene), case.scene)
        assert min(found) > STYLED_OVERLAP, case
        other, _ = dataset.sample_scene(rng)
        found = evaluate_adapters.overlaps(render(other), case.scene)
        assert np.mean(found) < evaluate_adapters.OVERLAP_BOUND, case
    flat = np.full((128, 128, 3), 255, np.uint8)
    assert not any(evaluate_adapters.overlaps(flat, case.scene))


@pytest.mark.parametrize("style", styles.STYLES)
def test_style_of_a_lora_alone_is_judged_where_the_objects_are(style: str) -> None:
    """The judge has the scene of the case, and the image has its objects elsewhere."""
    rng = np.random.default_rng(5)
    cases = evaluate_adapters.held_out_cases(24)
    prompts = [*evaluation.held_out_singles(12), *evaluation.held_out_pairs(12)]
    scenes = [
        dataset.place_single(wanted, rng)
        if isinstance(wanted, dataset.Single)
        else dataset.place_pair(wanted, rng)
        for _, wanted in prompts
    ]
    styled = [styles.render_in_style(scene, style) for scene in scenes]
    flat = [np.full((128, 128, 3), 255, np.uint8)] * len(cases)
    plain = [dataset.render(scene) for scene in scenes]
    for images, share in ((styled, 1), (plain, 0), (flat, 0)):
        amounts = evaluate_adapters.style_amounts(images, cases, style, placed=False)
        assert evaluate_adapters.style_figures(amounts)["style"] == share


@pytest.mark.parametrize("kind", ["circle", "square"])
def test_stronger_stripes_do_not_swap_the_objects(kind: str) -> None:
    """A white object with a dark stripe, and a black one with a light stripe, of the same shape."""
    rng = np.random.default_rng(6)
    pair = dataset.Pair(("white", kind), "left of", ("black", kind), "purple")
    scene, other = (dataset.place_pair(pair, rng) for _ in range(2))
    found = evaluate_adapters.located(styles.render_in_style(scene, "striped", 1.4), other)
    assert found is not None
    for each, wanted in zip(found.shapes, scene.shapes, strict=True):
        assert np.hypot(each.x - wanted.x, each.y - wanted.y) < wanted.radius


def test_predicted_noise_gives_back_the_latents() -> None:
    """Also where the sample is noise alone."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(64, 4, 16, 16, generator=generator)
    ids = torch.tensor([[1, 5, 6, 2]]).expand(64, 4)
    batch = noisy_latents.draw_noise(latents, ids, generator)
    assert batch.blank.any() and not batch.blank.all()
    assert bool((batch.timesteps[batch.blank] >= noisy_latents.BLANK_FROM).all())
    found = noisy_latents.predicted_latents(batch.noise, batch)
    assert_close(found.numpy(), latents.numpy(), abs_=PREDICTED_LATENTS_ABS)
    assert noisy_latents.weighted_error(batch.noise, batch) == 0
    empty = [row for row in batch.input_ids.tolist() if row != [1, 5, 6, 2]]
    assert empty and all(row == [1, 2, 2, 2] for row in empty)


def test_samples_show_the_objects_elsewhere_and_predict_them_in_place() -> None:
    generator = torch.Generator().manual_seed(0)
    latents, elsewhere = torch.zeros(256, 4, 16, 16), torch.full((256, 4, 16, 16), 50.0)
    ids = torch.tensor([[1, 5, 2]]).expand(256, 3)
    batch = noisy_latents.draw_noise(
        latents, ids, generator, may_be_blank=False, elsewhere=elsewhere
    )
    signal = noisy_latents.alphas_cumprod()[batch.timesteps].sqrt()
    moved = batch.sample.mean(dim=(1, 2, 3)) > 25 * signal
    late = batch.timesteps >= noisy_latents.ELSEWHERE_FROM
    assert not moved[~late].any() and moved[late].any() and not moved[late].all()
    found = noisy_latents.predicted_latents(batch.noise, batch)
    assert_close(found.numpy(), latents.numpy(), abs_=PREDICTED_LATENTS_ABS)


def test_mean_of_weights_and_cycles() -> None:
    states = [{"w": torch.tensor([x]), "n": torch.tensor(7)} for x in (1.0, 2.0, 6.0)]
    assert pair_order.mean_weights(states) == {"w": torch.tensor([3.0]), "n": torch.tensor(7)}
    assert [training.cycle_of(step, (2, 5)) for step in range(5)] == [0, 0, 1, 1, 1]
    rates = [training.learning_rate(step, (100, 200), (8.0, 1.0)) for step in (50, 150)]
    assert rates[0] / rates[1] == 8


def test_samples_are_noise_alone_only_where_they_may() -> None:
    generator = torch.Generator().manual_seed(0)
    latents, ids = torch.zeros(256, 4, 16, 16), torch.tensor([[1, 5, 2]]).expand(256, 3)
    may_be_blank = torch.arange(256) % 2 == 0
    batch = noisy_latents.draw_noise(latents, ids, generator, may_be_blank=may_be_blank)
    assert batch.blank[may_be_blank].any() and not batch.blank[~may_be_blank].any()
    assert not (batch.blank & batch.without_caption).any()
    both = noisy_latents.draw_noise(latents, ids, generator, blank_without_caption=True)
    assert (both.blank & both.without_caption).any()


def test_meaning_of_every_wording() -> None:
    """The object on the side that the caption says, whichever object it starts from."""
    expected = {"top": ("red", "circle"), "bottom": ("blue", "star"), "background": "white"}
    pair = dataset.Pair(("red", "circle"), "above", ("blue", "star"), "white")
    for wording, each in itertools.product(range(3), (pair, dataset.restated(pair))):
        found = named(dataset.pair_caption(each, wording))
        assert found == (expected if wording else {**expected, "background": ""})
    single = dataset.Single("small", "red", "circle", "blue")
    for wording in range(len(dataset.SINGLE_WORDINGS)):
        found = named(dataset.single_caption(single, wording))
        assert found == {"centre": ("red", "circle"), "background": "blue", "size": "small"}
    assert named("an orange star") == {"centre": ("orange", "star"), "background": ""}


def named(caption: str) -> dict[str, object]:
    """The meaning in words."""
    words = [names[index] for names, index in zip(ANSWERS, meaning(caption), strict=True)]
    places = zip(
        ("top", "bottom", "left", "right", "centre"), words[:10:2], words[1:10:2], strict=True
    )
    found: dict[str, object] = {place: (c, shape) for place, c, shape in places if shape}
    return found | {"background": words[10]} | ({"size": words[11]} if words[11] else {})


def test_longest_caption_fits_the_tokens_whose_meaning_is_learned() -> None:
    tokenizer = CLIPTokenizer.from_pretrained(MODEL_DIR / "tokenizer")
    rng = np.random.default_rng(4)
    captions = [dataset.sample_scene(rng)[1] for _ in range(500)]
    assert max(len(ids) for ids in tokenizer(captions).input_ids) <= CAPTION_TOKENS


@pytest.mark.slow
def test_stage_resumes_as_if_it_had_not_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The VAE stays as it is, to the byte."""
    monkeypatch.setattr(training, "SAVE_EVERY", 1)
    order_loss, calls = pair_order.order_loss, 0

    def stop_once(*args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return order_loss(*args)

    def train(work: Path) -> dict[str, torch.Tensor]:
        work.mkdir(exist_ok=True)
        args = Namespace(work=work, output=work / "model", device="cpu", seed=0, meaning_steps=2)
        args.order_scenes = 64
        phases = (pair_order.Phase(1, 1e-4, 32), pair_order.Phase(1, 1e-4, 16, small=8))
        endings = {"end": pair_order.Phase(1, 1e-4, 16, all_blank=True)}
        pair_order.train(args, MODEL_DIR, MODEL_DIR, phases, endings)
        return torch.load(work / "order_end.pt", weights_only=True)["modules"]

    whole = train(tmp_path / "whole")
    monkeypatch.setattr(pair_order, "order_loss", stop_once)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped")
    resumed = train(tmp_path / "stopped")
    assert all(torch.equal(whole[name], weight) for name, weight in resumed.items())
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        new, old = (folder / "vae" / name for folder in (tmp_path / "whole/model", MODEL_DIR))
        assert new.read_bytes() == old.read_bytes()
