"""Blended token embeddings compared with transformers, whose embedding table is edited."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from sdexport import ClipTokenizer, Pipeline, load_pipeline
from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.engines import open_session
from sdexport.graphs.precision import Conversion, verifying_backend
from sdexport.graphs.token_graphs import write_token_graphs
from sdexport.graphs.trace import trace
from sdexport.graphs.wrappers import parts
from sdexport.runtime.text_encoders import TextEncoders
from sdexport.verification.comparison import compare
from tests.helpers.families import build
from tests.helpers.traces import shared_traces
from tests.tolerances import COMPONENT_REL, MIXED_TOKENS_L2, assert_close

PROMPT = "a small red circle on a red background"
OTHER = "a large green star on a blue background"
MIX = {"red": {"red": 0.3, "blue": 0.5, "star": -0.4}}


@contextmanager
def mixed_rows(model: Any, tokenizer: ClipTokenizer) -> Iterator[None]:
    """Inside the block, the row of "red" in the model's table is the blend."""
    table = model.get_input_embeddings().weight
    rows = {word: tokenizer.encode(word)[0] for word in ("red", *MIX["red"])}
    kept = table.data[rows["red"]].clone()
    table.data[rows["red"]] = sum(w * table.data[rows[word]] for word, w in MIX["red"].items())
    try:
        yield
    finally:
        table.data[rows["red"]] = kept


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_blend_equals_transformers(
    package: Path, pipe: Pipeline, modules: dict[str, Any], backend: str
) -> None:
    pytest.importorskip(backend)
    model = modules["text_encoder"]
    with mixed_rows(model, pipe.tokenizer), torch.inference_mode():
        expected = model(torch.from_numpy(pipe.tokenizer([PROMPT, OTHER]))).last_hidden_state
    with load_pipeline(package, backend, verify=False) as other:
        actual = other.encode([PROMPT, OTHER], token_embeds=MIX)
        assert_close(actual, expected.numpy(), rel=COMPONENT_REL)
        assert np.abs(actual[0] - other.encode([PROMPT])[0]).max() > 0.1


def test_vector_equals_transformers(pipe: Pipeline, modules: dict[str, Any]) -> None:
    model = modules["text_encoder"]
    table = model.get_input_embeddings().weight
    vector = np.random.default_rng(0).normal(0, 0.3, table.shape[1]).astype(np.float32)
    red = pipe.tokenizer.encode("red")[0]
    kept = table.data[red].clone()
    assert_close(pipe.text_encoders.token_embeds("red"), kept.numpy()[None], rel=0)
    table.data[red] = torch.from_numpy(vector)
    try:
        with torch.inference_mode():
            expected = model(torch.from_numpy(pipe.tokenizer([PROMPT]))).last_hidden_state
    finally:
        table.data[red] = kept
    actual = pipe.encode([PROMPT], token_embeds={"red": vector})
    assert_close(actual, expected.numpy(), rel=COMPONENT_REL)


@pytest.fixture(scope="module")
def sdxl(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Checkpoint, dict[str, Any]]]:
    """A checkpoint and its text encoders, which are traced once for each opset."""
    checkpoint = Checkpoint.open(build("sdxl", tmp_path_factory.mktemp("sdxl") / "checkpoint"))
    with shared_traces():
        yield checkpoint, {name: checkpoint.load(name) for name in checkpoint.text_encoders}


@pytest.mark.parametrize(
    ("precision", "opset"),
    [("fp32", 18), ("fp32", 23), ("fp16", 18), ("fp16", 23), ("bf16", 23), ("int8", 23)],
)
def test_blend_in_both_text_encoders_equals_transformers(
    sdxl: tuple[Checkpoint, dict[str, Any]], precision: str, opset: int, tmp_path: Path
) -> None:
    """SDXL: the penultimate hidden states of both, and the pooled output of the second."""
    backend = verifying_backend(precision)
    assert backend is not None
    checkpoint, models = sdxl
    tokenizers, sides, pooled = {}, [], None
    for part in parts(checkpoint.configs):
        if part.name not in checkpoint.text_encoders:
            continue
        model = models[part.name]
        path = tmp_path / part.name / "model.onnx"
        trace(part, model, path, opset=opset, change=Conversion(precision))
        write_token_graphs(path)
        where = part.name.replace("text_encoder", "tokenizer")
        tokenizer = ClipTokenizer.from_folder(checkpoint.folder / where)
        tokenizers[part.name] = tokenizer
        with mixed_rows(model, tokenizer), torch.inference_mode():
            ids = torch.from_numpy(tokenizer([PROMPT, OTHER]))
            result = model(input_ids=ids, output_hidden_states=True)
        sides.append(result.hidden_states[-2])
        pooled = getattr(result, "text_embeds", pooled)
    package: Any = SimpleNamespace(
        tokenizer=tokenizers.get,
        family=checkpoint.family,
        manifest=SimpleNamespace(components=tokenizers),
        config=lambda name: vars(checkpoint.configs[name]),
    )

    def session(graph: str) -> Any:
        name, _, further = graph.partition(".")
        return open_session(tmp_path / name / f"{further or 'model'}.onnx", backend)

    encoders = TextEncoders(package, session)
    found = encoders.encode([PROMPT, OTHER], token_embeds=MIX)
    assert found.pooled is not None and pooled is not None
    for expected, actual in ((torch.cat(sides, -1), found.embeds), (pooled, found.pooled)):
        if precision != "fp32":
            l2, _ = compare(expected.numpy(), actual) or (np.inf, np.inf)
            assert l2 <= MIXED_TOKENS_L2
        else:
            assert_close(actual, expected.numpy(), rel=COMPONENT_REL)
    widths = [side.shape[-1] for side in sides]
    with pytest.raises(ValueError, match=re.escape(f"expected float32 ({widths[0]})")):
        encoders.encode([PROMPT], token_embeds={"red": [np.zeros(1, np.float32)] * 2})


@pytest.mark.parametrize("opset", [18, 23])
def test_masked_graph_equals_transformers(
    sdxl: tuple[Checkpoint, dict[str, Any]], opset: int, tmp_path: Path
) -> None:
    """Tokens are masked in the middle, at the end and at the beginning.

    At the beginning there are rows in which every column is masked. At opset 18 model.onnx has no
    replacement of NaN, which would keep TensorRT from fusing its attention, and the masked graph
    needs one.
    """
    checkpoint, models = sdxl
    part = next(p for p in parts(checkpoint.configs) if p.name == "text_encoder_2")
    path = tmp_path / part.name / "model.onnx"
    trace(part, models[part.name], path, opset=opset)
    write_token_graphs(path)
    kinds, masked = (
        Counter(node.op_type for node in onnx.load(file, load_external_data=False).graph.node)
        for file in (path, path.with_name("attention_mask.onnx"))
    )
    assert not kinds["IsNaN"] and bool(kinds["Softmax"]) == (opset < 23)
    assert masked["IsNaN"] == masked["Softmax"] == kinds["Softmax"]
    ids = np.random.default_rng(0).integers(1, 500, (3, 77))
    ids[:, -1] = checkpoint.configs[part.name].eos_token_id
    mask = np.ones_like(ids)
    mask[0, 5:9], mask[1, 40:], mask[2, :3] = 0, 0, 0
    with open_session(path.with_name("attention_mask.onnx")) as session:
        found = session.run({"input_ids": ids, "attention_mask": mask})
    with torch.inference_mode():
        result = models[part.name](
            torch.from_numpy(ids), torch.from_numpy(mask), output_hidden_states=True
        )
    actual, expected = found["last_hidden_state"], result.last_hidden_state.numpy()
    assert np.isfinite(actual).all()
    attends = mask.cumsum(axis=1) > 0  # without a column to attend to, the result is arbitrary
    assert_close(actual[attends], expected[attends], rel=COMPONENT_REL)


def test_token_graphs_share_the_weights_of_the_model(package: Path) -> None:
    folder = package / "text_encoder"
    graphs = (
        *("model.onnx", "token_embedding.onnx"),
        *("inputs_embeds.onnx", "attention_mask.onnx"),
    )
    assert {f.name for f in folder.iterdir()} == {*graphs, "model.onnx_data", "config.json"}
    data = (folder / "model.onnx_data").stat().st_size
    assert sum((folder / graph).stat().st_size for graph in graphs) < data / 8
