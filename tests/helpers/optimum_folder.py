"""A folder as Optimum writes it: its names, ranks and configurations around tiny graphs.

The edges are those of optimum-onnx 0.1.0 on an SDXL checkpoint: timestep is a float32 scalar, each
text encoder also gives what leaves its last layer, text_embeds is declared as wide as the text is
long, and the outputs' sizes are written as products. Older versions gave the timestep as int64 (1).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sdexport.demo_model import MODEL_DIR

LAYERS = {"text_encoder": 3, "text_encoder_2": 2}
WIDTHS = {"text_encoder": 4, "text_encoder_2": 6}
POOLED = 5
FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64
Edge = tuple[str, int, Sequence[int | str]]


def write_optimum_folder(folder: Path, timestep: Edge = ("timestep", FLOAT, ())) -> Path:
    """An SDXL folder; its images depend on every input of every graph."""
    for name in LAYERS:
        _text_encoder(folder / name, name)
        shutil.copytree(MODEL_DIR / "tokenizer", folder / name.replace("text_encoder", "tokenizer"))
    _unet(folder / "unet", timestep)
    _vae(folder)
    scheduler = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}
    scheduler |= {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    _json(folder / "scheduler" / "scheduler_config.json", scheduler | {"steps_offset": 1})
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline",
        "force_zeros_for_empty_prompt": True,
        "feature_extractor": [None, None],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    _json(folder / "model_index.json", index)
    return folder


def hidden_state(ids: np.ndarray, name: str, layer: int) -> np.ndarray:
    """The output hidden_states.LAYER of a text encoder, (B, n, width) float32."""
    hidden = ids[..., None].astype(np.float32) * _row(name) + np.float32(layer)
    return hidden.astype(np.float32)


def _row(name: str) -> np.ndarray:
    """Powers of two below, so that every sum is exact."""
    return np.arange(1, WIDTHS[name] + 1, dtype=np.float32) / 1024


def _text_encoder(folder: Path, name: str) -> None:
    width, layers = WIDTHS[name], LAYERS[name]
    batch: list[int | str] = ["batch_size", "sequence_length"]
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["ids"], to=FLOAT),
        helper.make_node("Unsqueeze", ["ids", "last"], ["column"]),
        helper.make_node("Mul", ["column", "row"], ["rows"]),
        helper.make_node("Identity", ["rows"], ["last_hidden_state"]),
    ]
    constants: dict[str, np.ndarray] = {"last": np.array([-1]), "row": _row(name)}
    outputs: list[Edge] = [("last_hidden_state", FLOAT, [*batch, width])]
    for layer in range(layers + 1):
        constants[f"layer.{layer}"] = np.array(layer, np.float32)
        nodes.append(
            helper.make_node("Add", ["rows", f"layer.{layer}"], [f"hidden_states.{layer}"])
        )
        outputs.append((f"hidden_states.{layer}", FLOAT, [*batch, width]))
    if name == "text_encoder_2":
        constants["projection"] = np.full((width, POOLED), 0.1, np.float32)
        nodes += [
            helper.make_node("ReduceMean", ["rows", "middle"], ["mean"], keepdims=0),
            helper.make_node("MatMul", ["mean", "projection"], ["text_embeds"]),
        ]
        constants["middle"] = np.array([1])
        outputs.insert(0, ("text_embeds", FLOAT, batch))
    else:
        nodes.append(
            helper.make_node("ReduceMean", ["rows", "middle"], ["pooler_output"], keepdims=0)
        )
        constants["middle"] = np.array([1])
        outputs.insert(1, ("pooler_output", FLOAT, ["batch_size", width]))
    _save(folder, nodes, [("input_ids", INT, batch)], outputs, constants)
    _json(folder / "config.json", {"model_type": "clip_text_model", "num_hidden_layers": layers})


def _unet(folder: Path, timestep: Edge) -> None:
    space: list[int | str] = ["batch_size", 4, "height", "width"]
    inputs: list[Edge] = [
        ("sample", FLOAT, space),
        timestep,
        ("encoder_hidden_states", FLOAT, ["batch_size", "sequence_length", sum(WIDTHS.values())]),
        ("text_embeds", FLOAT, ["batch_size", POOLED]),
        ("time_ids", FLOAT, ["batch_size", 6]),
    ]
    axes = {"encoder_hidden_states": [1, 2], "text_embeds": [1], "time_ids": [1]}
    constants = {f"{name}.axes": np.array(values) for name, values in axes.items()}
    constants |= {
        "hundredth": np.array(1e-2, np.float32),
        "cell": np.array([-1, 1, 1, 1]),
    }
    nodes = [
        helper.make_node("Cast", ["timestep"], ["time"], to=FLOAT),
        helper.make_node("Mul", ["time", "hundredth"], ["sum.time"]),
    ]
    total = "sum.time"
    for name in axes:
        nodes += [
            helper.make_node("ReduceMean", [name, f"{name}.axes"], [f"{name}.mean"], keepdims=0),
            helper.make_node("Mul", [f"{name}.mean", "hundredth"], [f"{name}.part"]),
            helper.make_node("Add", [f"{name}.part", total], [f"sum.{name}"]),
        ]
        total = f"sum.{name}"
    nodes += [
        helper.make_node("Reshape", [total, "cell"], ["cells"]),
        helper.make_node("Mul", ["sample", "cells"], ["out_sample"]),
    ]
    _save(folder, nodes, inputs, [("out_sample", FLOAT, space)], constants)
    _json(folder / "config.json", {"sample_size": 8, "in_channels": 4, "time_cond_proj_dim": None})


def _vae(folder: Path) -> None:
    config = {"block_out_channels": [8] * 4, "latent_channels": 4, "scaling_factor": 0.13025}
    scales = {"scales": np.array([1, 1, 8, 8], np.float32)}
    colours = {"from": np.array([0]), "to": np.array([3]), "axis": np.array([1])}
    latent: Edge = (
        "latent_sample",
        FLOAT,
        ["batch_size", 4, "latent_height", "latent_width"],
    )
    pixels = ["batch_size", 3, "latent_height * 8", "latent_width * 8"]
    decoder = [
        helper.make_node("Slice", ["latent_sample", "from", "to", "axis"], ["three"]),
        helper.make_node("Resize", ["three", "", "scales"], ["sample"], mode="nearest"),
    ]
    _save(folder / "vae_decoder", decoder, [latent], [("sample", FLOAT, pixels)], scales | colours)
    _json(folder / "vae_decoder" / "config.json", config)
    small = ["batch_size", 8, "sample_height / 8", "sample_width / 8"]
    encoder = [
        helper.make_node("AveragePool", ["sample"], ["cells"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Concat", ["cells", "cells", "cells"], ["nine"], axis=1),
        helper.make_node("Slice", ["nine", "from", "to", "axis"], ["latent_parameters"]),
    ]
    sample: Edge = ("sample", FLOAT, ["batch_size", 3, "sample_height", "sample_width"])
    outputs: list[Edge] = [("latent_parameters", FLOAT, small)]
    _save(folder / "vae_encoder", encoder, [sample], outputs, colours | {"to": np.array([8])})
    _json(folder / "vae_encoder" / "config.json", config)


def _save(
    folder: Path,
    nodes: list[Any],
    inputs: Sequence[Edge],
    outputs: Sequence[Edge],
    constants: dict[str, np.ndarray],
) -> None:
    def values(edges: Sequence[Edge]) -> list[Any]:
        return [helper.make_tensor_value_info(*edge) for edge in edges]

    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "main_graph", values(inputs), values(outputs), tensors)
    opsets = [helper.make_opsetid("", 18)]
    folder.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), folder / "model.onnx")


def _json(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))
