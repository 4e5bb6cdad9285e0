"""The pipeline as a Python model of Triton: images, batches, errors, damaged repositories."""

from __future__ import annotations

import io
import itertools
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from sdexport import Pipeline, load_pipeline
from sdexport.demo_model import PACKAGE_DIR
from sdexport.engines.errors import EngineError
from sdexport.engines.onnx_file.group_norm_nodes import with_instance_norms
from sdexport.engines.ort import onnxruntime_session
from sdexport.engines.session import TensorSpec
from sdexport.exporter import export
from sdexport.server.request_checks import argument_names
from sdexport.triton.bls_session import BlsSession
from sdexport.triton.graph_models import GraphModel
from sdexport.triton.pipeline_tensors import INPUTS, JSON, NOT_INPUTS
from sdexport.triton.repository_record import RECORD
from sdexport.triton.repository_writer import RepositoryOptions, write_repository
from tests.helpers.families import build
from tests.helpers.triton_server import (
    RequestError,
    TritonError,
    TritonModelException,
    TritonServer,
)
from tests.tolerances import IMAGE_ABS, assert_close

SMALL = {"width": 64, "height": 64, "num_inference_steps": 2, "seed": 3}
KINDS = {each.name: each.kind for each in INPUTS}


@pytest.fixture(scope="module", autouse=True)
def _as_stored() -> Iterator[None]:
    """The library runs graphs as they are in their files, as Triton does: without rewrites."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime_session, "with_instance_norms", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def pipe() -> Iterator[Pipeline]:
    with load_pipeline(PACKAGE_DIR) as pipeline:
        yield pipeline


def tensors(*rows: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inputs of a request, with a row for each mapping of arguments."""
    found = {}
    for name in rows[0]:
        kind, values = KINDS[name], [row[name] for row in rows]
        if kind in ("string", JSON):
            texts = [v if kind == "string" else json.dumps(v) for v in values]
            array = np.empty((len(texts), 1), object)
            array[:, 0] = [text.encode() for text in texts]
        elif kind == "uint8":
            array = np.stack([np.asarray(value, np.uint8) for value in values])
        else:
            array = np.array([np.atleast_1d(value) for value in values], kind)
        found[name] = array
    return found


def picture(seed: int = 0, size: int = 64) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(levels).resize((size, size), Image.Resampling.BICUBIC)


def mask() -> Image.Image:
    levels = np.zeros((64, 64), np.uint8)
    levels[:, 32:] = 255
    return Image.fromarray(levels)


@pytest.mark.parametrize(
    "further",
    [
        {},
        {"guidance_scale": 0.7, "scheduler": "euler_a"},
        {"negative_prompt": "grün ☃", "scheduler": "dpm++_2m", "schedule": "karras"},
        {"image": picture(), "strength": 0.6},
        {"image": picture(), "mask_image": mask(), "strength": 0.9, "paste_back": True},
        {"prompt_style": "automatic1111", "prompt": "a (red:1.3) circle", "clip_skip": 1},
        {"prompt": "a red circle", "token_embeds": {"red": {"red": 0.5, "blue": 0.5}}},
        {"scheduler": "ddim", "eta": 0.4, "guidance_rescale": 0.3, "guidance_interval": (0.2, 1)},
        {"scheduler": "heun", "scheduler_options": {"prediction_type": "epsilon"}},
    ],
    ids=lambda further: "-".join(further) or "plain",
)
def test_images_are_those_of_the_library(
    server: TritonServer, pipe: Pipeline, further: dict[str, Any]
) -> None:
    arguments = {"prompt": "a large blue star", **SMALL, **further}
    if "image" in further:
        del arguments["width"], arguments["height"]
    found = server.infer("demo", tensors(arguments))
    expected = pipe(**arguments)
    np.testing.assert_array_equal(found["image"][0], np.asarray(expected.images[0]))
    assert found["seed"].tolist() == [[3]]
    with Image.open(io.BytesIO(found["png"][0, 0])) as file:
        np.testing.assert_array_equal(np.asarray(file), found["image"][0])
        assert "sdexport" in file.info
    settings = json.loads(found["parameters"][0, 0])
    theirs = expected.parameters[0].to_dict()
    own = {"backend", "options", "engines"}
    assert {k: v for k, v in settings.items() if k not in own} == {
        k: v for k, v in json.loads(json.dumps(theirs)).items() if k not in own
    }
    assert json.loads(found["warnings"][0, 0]) == []
    assert {name for name, _ in server.calls} >= {"demo_unet", "demo_vae_decoder"}


def test_sdxl_images_are_those_of_the_library(union_folder: Path, tmp_path: Path) -> None:
    check_family(union_folder / "package", tmp_path, {"negative_prompt": "grey"})


@pytest.mark.slow
@pytest.mark.parametrize("family", ["inpainting", "lcm", "refiner", "sd2-v", "sdxl-inpainting"])
def test_images_of_other_families_are_those_of_the_library(family: str, tmp_path: Path) -> None:
    package = tmp_path / "package"
    export(build(family, tmp_path / family), package)
    further: dict[str, Any] = {}
    if "inpainting" in family or family == "refiner":
        further = {"image": picture(), "strength": 0.8}
    if "inpainting" in family:
        further |= {"mask_image": mask()}
    check_family(package, tmp_path, further)


def check_family(package: Path, folder: Path, further: Mapping[str, Any]) -> None:
    """Compare an image of Triton with one of the library, bit for bit."""
    options = RepositoryOptions(name="tiny", kind="cpu")
    write_repository(package, folder / "models", options=options)
    arguments = {"prompt": "a red circle", "num_inference_steps": 2, "seed": 5, **further}
    server = TritonServer(folder / "models")
    found = server.infer("tiny", tensors(arguments), ["image"])
    server.close()
    assert set(found) == {"image"}
    with load_pipeline(package) as pipe:
        expected = pipe(**arguments).images[0]
    np.testing.assert_array_equal(found["image"][0], np.asarray(expected))


def test_images_of_the_rewritten_graphs_differ_by_rounding(
    server: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {"prompt": "a large blue star", **SMALL}
    monkeypatch.setattr(onnxruntime_session, "with_instance_norms", with_instance_norms)
    with load_pipeline(PACKAGE_DIR) as pipe:
        expected = np.asarray(pipe(**arguments).images[0])
    found = server.infer("demo", tensors(arguments))["image"][0]
    assert_close(found, expected, abs_=IMAGE_ABS)


def test_compatible_requests_are_one_pipeline_call(server: TritonServer, pipe: Pipeline) -> None:
    first = {"prompt": "a red circle", **SMALL}
    second = {"prompt": "a green square", **SMALL, "seed": 4}
    other = {"prompt": "a green square", **SMALL, "num_inference_steps": 3}
    found = server.infer_batch("demo", [tensors(first, second), tensors(other), tensors(first)])
    steps = [arrays["sample"].shape[0] for name, arrays in server.calls if name == "demo_unet"]
    assert sorted(steps) == [2, 2, 2, 6, 6]  # three steps of one image, two of three images
    images = [image for answer in found for image in answer["image"]]  # type: ignore[call-overload]
    for arguments, image in zip([first, second, other, first], images, strict=True):
        np.testing.assert_array_equal(image, np.asarray(pipe(**arguments).images[0]))


def test_rows_beyond_the_limit_of_a_model_are_sent_in_parts(
    server: TritonServer, pipe: Pipeline
) -> None:
    rows = [{"prompt": "a star", **SMALL, "seed": seed} for seed in range(4)]
    found = server.infer("demo", tensors(*rows))
    assert {len(a["latent_sample"]) for n, a in server.calls if n == "demo_vae_decoder"} == {4}
    session = server.python("demo")._model.pipeline.session("vae_decoder")
    server.calls.clear()
    latents = np.random.default_rng(0).standard_normal((9, 4, 8, 8)).astype(np.float32)
    whole = session.run({"latent_sample": latents})["sample"]
    assert [len(arrays["latent_sample"]) for _, arrays in server.calls] == [4, 4, 1]
    np.testing.assert_array_equal(
        whole, pipe.session("vae_decoder").run({"latent_sample": latents})["sample"]
    )
    assert found["image"].shape == (4, 64, 64, 3)


@pytest.mark.parametrize("max_batch", [0, 2])
def test_tensors_without_dimensions_are_sent_with_one(max_batch: int, tmp_path: Path) -> None:
    shape = ("batch",) if max_batch else ()
    specs = [TensorSpec(name, "float32", shape) for name in "abc"]
    model = GraphModel("g", "m", tuple(specs[:2]), tuple(specs[2:]), max_batch)
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "abc"]
    node = helper.make_node("Add", ["a", "b"], ["c"])
    graph = helper.make_graph([node], "g", infos[:2], infos[2:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "m" / "1").mkdir(parents=True)
    onnx.save(made, tmp_path / "m" / "1" / "model.onnx")
    config = model.config(instances=1, kind="cpu").text()
    (tmp_path / "m" / "config.pbtxt").write_text(config, "utf-8")
    triton = TritonServer(tmp_path).module()
    session = BlsSession(
        "g", model.inputs, model.outputs, model="m", max_batch=max_batch, triton=triton
    )
    values = np.arange(5, dtype=np.float32) if max_batch else np.array(3, np.float32)
    found = session.run({"a": values, "b": values})["c"]
    assert found.shape == values.shape
    np.testing.assert_array_equal(found, 2 * values)


def test_random_seeds_are_named_and_reproduce(server: TritonServer) -> None:
    arguments = {"prompt": "a star", **SMALL}
    del arguments["seed"]
    found = server.infer("demo", tensors(arguments, arguments))
    seeds = found["seed"].ravel().tolist()
    assert seeds[0] != seeds[1]
    again = server.infer("demo", tensors({**arguments, "seed": seeds[1]}))
    np.testing.assert_array_equal(found["image"][1], again["image"][0])
    negative = server.infer("demo", tensors({**arguments, "seed": -(2**62)}), ["seed"])
    assert negative["seed"].tolist() == [[-(2**62)]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 65}, "width must be a multiple of 8, got 65"),
        ({"width": -8}, "width must be 8 to 8192"),
        ({"width": 8192, "height": 8192}, "the limit is 4,194,304 (--max-pixels)"),
        ({"num_inference_steps": 0}, "num_inference_steps must be 1 to 150, got 0"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be 0 or more, got nan"),
        ({"guidance_scale": float("inf")}, "guidance_scale must be 0 or more, got inf"),
        ({"scheduler": "no such"}, "unknown scheduler"),
        ({"scheduler_options": [1]}, "scheduler_options"),
        ({"scheduler_options": {"solver_order": 1e300}}, "at most 100,000"),
        ({"prompt": "x" * 30_000}, "30,000 characters; at most 20,000 are read"),
        ({"prompt": "x " * 10_000, "prompt_style": "compel"}, "at most 2,400 are read"),
        ({"strength": 2.0, "image": picture()}, "strength must be 0 to 1"),
        ({"mask_image": mask()}, "image"),
        ({"image": np.zeros((0, 64, 3))}, "image: empty array"),
        ({"timesteps": ()}, "timesteps"),
        ({"resize_mode": "no", "image": picture()}, "resize_mode"),
        ({"resize_mode": "no"}, "resize_mode"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_arguments_are_errors_of_one_line(
    server: TritonServer, change: dict[str, Any], message: str
) -> None:
    good = {"prompt": "a star", **SMALL}
    if "image" in change:
        del good["width"], good["height"]
    bad = tensors({**good, **change})
    answers = server.infer_batch("demo", [bad, tensors({"prompt": "a star", **SMALL})])
    error, fine = answers
    assert isinstance(error, RequestError) and message in str(error), str(error)
    assert error.code == TritonError.INVALID_ARG and "\n" not in str(error)
    assert not isinstance(fine, RequestError)  # the other request is answered


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("prompt", b"\xff\xfe", "prompt is not UTF-8"),
        ("scheduler_options", b"{", "scheduler_options is not JSON"),
        ("scheduler_options", b'{"a": NaN}', "NaN is no number in JSON"),
        ("scheduler_options", b"[" * 100_000, "scheduler_options is not JSON"),
        ("scheduler_options", b"1" * 2_000_000, "more than 1,000,000 characters"),
    ],
)
def test_texts_that_cannot_be_read(
    server: TritonServer, name: str, value: bytes, message: str
) -> None:
    inputs = tensors({"prompt": "a star", **SMALL})
    inputs[name] = np.array([[value]], object)
    with pytest.raises(RequestError, match=message):
        server.infer("demo", inputs)


def test_images_of_several_sizes_in_a_request(server: TritonServer) -> None:
    rows = [{"prompt": "a star", **SMALL}, {"prompt": "a star", **SMALL, "width": 128}]
    with pytest.raises(RequestError, match="must have one size, got 64x64 and 128x64"):
        server.infer("demo", tensors(*rows))
    assert not server.calls  # before anything runs


def test_an_error_of_a_row_names_it(server: TritonServer) -> None:
    rows = [{"prompt": "a star", "clip_skip": skip, **SMALL} for skip in (0, 99)]
    with pytest.raises(RequestError, match="row 1: clip_skip"):
        server.infer("demo", tensors(*rows))
    rows = [{"prompt": "a star", **SMALL, "width": width} for width in (64, 65)]
    with pytest.raises(RequestError, match="row 1: width must be a multiple of 8"):
        server.infer("demo", tensors(*rows))


def test_a_batch_that_fails_is_run_one_by_one(
    server: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Pipeline.__call__

    def fails_together(self: Pipeline, **arguments: Any) -> Any:
        if isinstance(arguments["prompt"], list) or arguments["prompt"] == "bad":
            raise EngineError("it does not fit")
        return call(self, **arguments)

    monkeypatch.setattr(Pipeline, "__call__", fails_together)
    requests = [tensors({"prompt": prompt, **SMALL}) for prompt in ("good", "bad")]
    good, bad = server.infer_batch("demo", requests)
    assert not isinstance(good, RequestError) and good["image"].shape == (1, 64, 64, 3)
    assert isinstance(bad, RequestError) and str(bad) == "it does not fit"


def test_a_package_without_safety_checker_is_named(server: TritonServer) -> None:
    with pytest.raises(RequestError, match="safety: demo holds no safety checker") as caught:
        server.infer("demo", tensors({"prompt": "a star", **SMALL, "safety": True}))
    assert caught.value.code == TritonError.INTERNAL


def test_a_model_that_is_not_loaded_is_named(
    server: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "unloaded", {"demo_vae_decoder"})
    with pytest.raises(RequestError) as caught:
        server.infer("demo", tensors({"prompt": "a star", **SMALL}))
    assert caught.value.code == TritonError.INTERNAL
    assert str(caught.value).startswith(
        "vae_decoder: Triton's model demo_vae_decoder failed: Request for unknown model"
    )


def test_outputs_that_do_not_fit_are_named(
    server: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    infer = server.infer
    changes: list[Any] = [
        lambda v: v.astype(np.float64),
        lambda v: v[0],
        lambda v: np.full_like(v, np.nan),
    ]

    def wrong(model: str, inputs: Any, requested: Any = ()) -> Any:
        found = infer(model, inputs, requested)
        if model == "demo_unet":
            return {"out_sample": np.ascontiguousarray(changes[0](found["out_sample"]))}
        return found

    monkeypatch.setattr(server, "infer", wrong)
    for message in ("gave float64", r"gave float32 \(4, 8, 8\)", "the output holds NaN"):
        (found,) = server.infer_batch("demo", [tensors({"prompt": "a star", **SMALL})])
        assert isinstance(found, RequestError)
        with pytest.raises(RequestError, match=message):
            raise found
        changes.pop(0)


def test_a_bug_is_an_error_without_details(
    server: TritonServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*arguments: Any, **further: Any) -> Any:
        raise ZeroDivisionError("in /some/folder")

    monkeypatch.setattr(Pipeline, "__call__", broken)
    with pytest.raises(RequestError, match="this is a bug in sdexport: ZeroDivisionError"):
        server.infer("demo", tensors({"prompt": "a star", **SMALL}))
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("after", [0, 3])
def test_a_cancelled_request_ends_within_a_step(server: TritonServer, after: int) -> None:
    counter = itertools.count()

    def is_cancelled() -> bool:
        return next(counter) >= after

    arguments = {"prompt": "a star", **SMALL, "num_inference_steps": 50}
    (found,) = server.infer_batch("demo", [tensors(arguments)], is_cancelled=is_cancelled)
    assert isinstance(found, RequestError) and found.code == TritonError.CANCELLED
    steps = sum(name == "demo_unet" for name, _ in server.calls)
    assert steps == max(after, 0)


def test_every_argument_of_the_server_is_an_input_or_is_named() -> None:
    assert {each.name for each in INPUTS} | set(NOT_INPUTS) == set(argument_names())


def copied(repository: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(repository, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "package/tokenizer/vocab.json").write_bytes(b"{}"), "truncated or altered"),
        (lambda f: flip(f / "package/scheduler/scheduler_config.json"), "was altered"),
        (lambda f: (f / "package/tokenizer/merges.txt").unlink(), "merges.txt is missing"),
        (lambda f: (f / "package/tokenizer/more.json").write_text("{}"), "is not listed"),
        (lambda f: (f / "package/sdexport.json").unlink(), "sdexport.json is missing"),
        (lambda f: flip(f / "package/sdexport.json"), "sdexport.json"),
        (lambda f: (f / RECORD).write_text("{}"), "format_version None is unknown"),
        (lambda f: (f / RECORD).write_text('{"format_version": 1}'), "is damaged: no 'name'"),
        (lambda f: (f / RECORD).write_bytes((f / RECORD).read_bytes()[:-9]), "is damaged"),
        (lambda f: (f / RECORD).unlink(), RECORD),
        (lambda f: edited(f, lambda r: r.update(digest="0" * 64)), "not the package of this"),
        (lambda f: edited(f, lambda r: r["models"].pop(0)), "has no model of text_encoder"),
        (lambda f: edited(f, wrong_input), "disagree about inputs"),
        (lambda f: edited(f, wrong_path), "points outside"),
        (lambda f: edited(f, lambda r: r.update(package="..")), "no name of a folder"),
        (lambda f: edited(f, lambda r: r.update(models=7)), "is damaged"),
        (lambda f: edited(f, wrong_hash), "lists other files of text_encoder"),
        (lambda f: edited(f, wrong_name), "no name of a folder"),
        (lambda f: (f.parents[1] / "demo_unet/1/model.onnx").unlink(), "model.onnx is missing"),
    ],
)
def test_a_damaged_repository_is_not_loaded(
    repository: Path, tmp_path: Path, damage: Any, message: str
) -> None:
    folder = copied(repository, tmp_path)
    damage(folder / "demo" / "1")
    with pytest.raises(TritonModelException, match=message) as caught:
        TritonServer(folder).python("demo")
    assert "\n" not in str(caught.value)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edited(folder: Path, edit: Any) -> None:
    record = json.loads((folder / RECORD).read_text())
    edit(record)
    (folder / RECORD).write_text(json.dumps(record))


def wrong_input(record: Any) -> None:
    record["models"][0]["inputs"][0]["dtype"] = "int32"


def wrong_path(record: Any) -> None:
    record["models"][0]["files"][0]["path"] = "../../outside.onnx"


def wrong_hash(record: Any) -> None:
    record["models"][0]["files"][0]["sha256"] = "0" * 64


def wrong_name(record: Any) -> None:
    record["models"][0]["name"] = "../other"


def test_an_altered_graph_gives_no_image(repository: Path, tmp_path: Path) -> None:
    folder = copied(repository, tmp_path)
    weights = folder / "demo_vae_decoder/1/model.onnx"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    server = TritonServer(folder)
    with pytest.raises(RequestError, match=r"demo_vae_decoder/1/model\.onnx was altered"):
        server.infer("demo", tensors({"prompt": "a star", **SMALL}))


def test_graphs_elsewhere_are_named(
    repository: Path, tmp_path: Path, server: TritonServer, caplog: pytest.LogCaptureFixture
) -> None:
    """As Triton copies models of a remote repository one by one."""
    shutil.copytree(repository / "demo", tmp_path / "demo")
    alone = TritonServer(tmp_path)
    alone.configs |= {k: v for k, v in server.configs.items() if k != "demo"}
    alone._graphs = server._graphs
    for name in server.configs:
        if name != "demo":
            alone._graphs.setdefault(name, server._graph(name))
    with caplog.at_level(logging.WARNING):
        found = alone.infer("demo", tensors({"prompt": "a star", **SMALL}))
    assert "not in the same folder" in caplog.text and "demo_unet" in caplog.text
    same = server.infer("demo", tensors({"prompt": "a star", **SMALL}))
    np.testing.assert_array_equal(found["image"], same["image"])
