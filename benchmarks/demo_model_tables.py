"""Tables of how well the demo model follows its prompts, and how well its adapters work."""

from __future__ import annotations

from typing import Any

from benchmarks.tables import table_row
from sdexport.demo_model.evaluate import GUIDANCE_SCALE
from sdexport.demo_model.evaluate_adapters import FULL, GUIDED


def evaluation(report: dict[str, Any]) -> str:
    """From the report of sdexport.demo_model.evaluate."""
    lines = [
        f"The demo model on held-out prompts: {report['steps']} steps, guidance scale "
        f"{report['guidance_scale']:g}. Image analysis decides whether colour, background, shape "
        "and size are those of the prompt (`python -m sdexport.demo_model.evaluate`).\n",
        "| prompts | scheduler | colour | background | shape | size | all |",
        "|---|---|---|---|---|---|---|",
    ]
    pairs = [
        "\nPrompts with two objects, and whether the first is above, below, left of or right of "
        "the second, as the prompt says:\n",
        "| prompts | scheduler | background | both objects | relation | all |",
        "|---|---|---|---|---|---|",
    ]
    for name in ("lms", "ddim"):
        single, pair = report[f"single.{name}"], report[f"pair.{name}"]
        columns = ("colour", "background", "shape", "size", "all")
        lines.append(table_row(single["prompts"], name, *(f"{single[c]:.1%}" for c in columns)))
        columns = ("background", "objects", "relation", "all")
        pairs.append(table_row(pair["prompts"], name, *(f"{pair[c]:.1%}" for c in columns)))
    return "\n".join(lines + pairs)


_WAYS = {
    "vae": "the scenes themselves, encoded and decoded by the VAE",
    "controlnet": "ControlNet",
    GUIDED: f"ControlNet, guidance scale {GUIDANCE_SCALE:g}",
    "striped 0.5": "ControlNet, LoRA `striped` at 0.5",
    "striped 1.0": "ControlNet, LoRA `striped`",
    "soft 0.5": "ControlNet, LoRA `soft` at 0.5",
    "soft 1.0": "ControlNet, LoRA `soft`",
}
_SHAPES = ("circle", "square", "triangle", "star")


def adapters(report: dict[str, Any]) -> str:
    """From the report of sdexport.demo_model.evaluate_adapters."""
    lines = [
        f"{report['cases']} held-out cases, half of them with two objects: a prompt, and outlines "
        f"of a scene with other sizes and places than the prompt alone gives. {report['steps']} "
        f"steps of {report['scheduler']}, guidance scale {report['guidance_scale']:g} (`python -m "
        "sdexport.demo_model.evaluate_adapters`). How well the outlines are followed: intersection "
        "over union of the objects in the image and in the scene, mean of all cases, and of each "
        "shape.\n",
        f"| with | all | {' | '.join(_SHAPES)} |",
        "|---|---|---|---|---|---|",
    ]
    for key, name in _WAYS.items():
        figures = report[key]
        lines.append(table_row(name, *(f"{figures[c]:.3f}" for c in ("overlap", *_SHAPES))))
    lines += [
        "\nHow much of a LoRA's style the images have: about 0 without it, about 1 in drawings "
        f"with all of it; and in how many it is present ({FULL:g} or more):\n",
        "| LoRA | with | scale | mean amount | present |",
        "|---|---|---|---|---|",
    ]
    for style in ("striped", "soft"):
        rows = (
            ("the ControlNet", "0", "0.0"),
            ("the ControlNet", "0.5", "0.5"),
            ("the ControlNet", "1", "1.0"),
            ("nothing else", "1", "alone"),
        )
        for other, scale, key in rows:
            figures = report[f"{style} {key}"]
            amount, present = f"{figures['amount']:.2f}", f"{figures['style']:.1%}"
            lines.append(table_row(f"`{style}`", other, scale, amount, present))
    between = [f"{report[f'{style} 0.5']['between']:.1%}" for style in ("striped", "soft")]
    lines.append(
        f"\nAt scale 0.5 the amount is between those at 0 and at 1 in {between[0]} of the images "
        f"(`striped`) and in {between[1]} (`soft`)."
    )
    return "\n".join(lines)
