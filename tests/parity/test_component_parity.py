"""Exported graphs against the PyTorch modules, at sizes that no example of the export had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sdexport import Pipeline
from sdexport.engines import open_session
from sdexport.graphs.trace import trace
from tests.helpers.torch_components import SIZES, assert_equal_to_torch, part_named
from tests.tolerances import COMPONENT_REL, assert_close


@pytest.mark.parametrize("name", ["text_encoder", "unet", "vae_decoder", "vae_encoder"])
def test_component_equals_torch(
    name: str, checkpoint: Path, pipe: Pipeline, torch_sessions: dict[str, Any]
) -> None:
    assert_equal_to_torch(part_named(name, checkpoint), pipe.session(name), torch_sessions[name])


@pytest.mark.parametrize("timestep", [0.0, 1.0, 333.25, 999.0])
def test_unet_equals_torch_at_every_kind_of_timestep(
    timestep: float, checkpoint: Path, pipe: Pipeline, torch_sessions: dict[str, Any]
) -> None:
    feeds = {k: v.numpy() for k, v in part_named("unet", checkpoint).example(SIZES[0], 3).items()}
    feeds["timestep"] = np.full(1, timestep, np.float32)
    expected = torch_sessions["unet"].run(feeds)["out_sample"]
    assert_close(pipe.session("unet").run(feeds)["out_sample"], expected, rel=COMPONENT_REL)


def test_text_encoder_equals_transformers_for_prompts(
    pipe: Pipeline, modules: dict[str, Any]
) -> None:
    prompts = ["", "a small red circle on a blue background", "🔴 rouge", "star " * 200]
    ids = pipe.tokenizer(prompts)
    result = modules["text_encoder"](torch.from_numpy(ids))
    actual = pipe.session("text_encoder").run({"input_ids": ids})
    assert_close(actual["last_hidden_state"], result.last_hidden_state.numpy(), rel=COMPONENT_REL)
    assert_close(actual["pooler_output"], result.pooler_output.numpy(), rel=COMPONENT_REL)


@pytest.mark.parametrize("opset", [18, 24])
@pytest.mark.parametrize("name", ["text_encoder", "unet"])
def test_other_opsets_equal_torch(
    name: str,
    opset: int,
    checkpoint: Path,
    modules: dict[str, Any],
    torch_sessions: dict[str, Any],
    tmp_path: Path,
) -> None:
    part = part_named(name, checkpoint)
    trace(part, modules[part.source], tmp_path / name / "model.onnx", opset=opset)
    with open_session(tmp_path / name / "model.onnx") as session:
        assert_equal_to_torch(part, session, torch_sessions[name])
