"""Models by name: opened on demand, closed by least use under the memory limit."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdexport import Pipeline
from sdexport.engines.errors import InvalidArgumentError, OutOfMemoryError
from sdexport.server.model_store import Model, ModelStore
from tests.helpers.live_server import live_server

JOB = {"prompt": "a star", "num_inference_steps": 1, "width": 64, "height": 64}


def test_least_used_models_are_closed_under_the_limit(demo_package: Path) -> None:
    names = ("a", "b", "c")
    store = ModelStore(dict.fromkeys(names, demo_package), memory_limit=10**12)
    a, b, c = store.models
    need = store.need(a)
    assert need is not None and need > 10_000_000
    store.memory_limit = 2 * need + 1
    assert [model.pipeline is None for model in store.models] == [True] * 3
    store.open(a)
    store.open(b)
    assert store.open(a) is a.pipeline  # b is the least used one now
    store.open(c)
    assert [model.pipeline is not None for model in store.models] == [True, False, True]
    store.open(b)
    assert [model.pipeline is not None for model in store.models] == [False, True, True]
    store.close()
    store.close()
    assert all(model.pipeline is None for model in store.models)
    store.memory_limit = need - 1
    with pytest.raises(OutOfMemoryError, match=r"--memory-limit"):
        store.open(a)


def test_images_that_are_rejected_leave_an_open_model_as_it_was(demo_package: Path) -> None:
    store = ModelStore({"a": demo_package}, memory_limit=10**12)
    [model] = store.models
    store.memory_limit = store.need(model, (64, 64))
    opened = store.open(model, (64, 64))
    with pytest.raises(OutOfMemoryError):
        store.open(model, (1024, 1024))
    assert store.open(model, (64, 64)).session("unet") and model.largest == store.memory_limit
    store.close()
    assert opened is not None


def test_larger_images_close_other_models(demo_package: Path) -> None:
    store = ModelStore(dict.fromkeys("ab", demo_package), memory_limit=10**12)
    a, b = store.models
    small, large = store.need(a, (64, 64)), store.need(a, (1024, 1024))
    assert small is not None and large is not None
    store.memory_limit = large + small - 1
    store.open(a, (64, 64))
    store.open(b, (64, 64))
    assert a.pipeline is not None
    store.open(b, (1024, 1024))  # it is open, and needs more now
    assert a.pipeline is None and b.pipeline is not None
    store.open(b, (64, 64))  # nothing is given back
    store.open(a, (64, 64))
    assert a.pipeline is not None and b.pipeline is None
    store.close()


def test_adapters_count_for_as_long_as_they_are_open(
    lora_package: Path, control_folder: Path
) -> None:
    first, second = control_folder / "first", control_folder / "second"
    store = ModelStore({"a": lora_package, "b": lora_package}, memory_limit=10**12)
    a, b = store.models
    alone, both = store.need(a), store.need(a, None, 1, [first, second])
    one = store.need(a, None, 1, [first])
    assert alone is not None and one is not None and both is not None
    assert alone < one < both
    store.open(a, None, 1, [first])
    assert a.held == one
    store.open(a, None, 1, [second])
    assert a.held == both
    store.open(a)  # without adapters, by another graph of the denoiser; all stay open
    graph = sum(record.size for record in a.package.manifest.components["unet"].files)
    assert a.held > both + graph
    store.memory_limit = a.held + alone - 1
    store.open(b)
    assert (a.pipeline, a.held, a.adapters) == (None, 0, ())
    store.open(a)
    assert a.held == alone
    store.open(a, None, 1, [first])
    assert a.held > one + graph
    store.memory_limit = both - 1
    store.open(a, None, 1, [second])  # it is opened anew, without the first one
    assert a.held < both and a.adapters == (second,)
    store.check_need(a, (64, 64), 1, [first])
    with pytest.raises(InvalidArgumentError, match="--memory-limit"):
        store.check_need(a, a.package.manifest.default_size, 1, [first, second])
    store.close()


def test_loras_count_with_their_graphs(lora_package: Path, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    for path in files:
        path.write_bytes(bytes(1_000))
    store = ModelStore({"a": lora_package}, memory_limit=10**12)
    (model,) = store.models
    alone, with_one = store.need(model), store.need(model, loras=files[:1])
    assert alone is not None and with_one == alone + 4_000
    store.open(model, loras=files[:1])
    assert model.held == with_one
    store.open(model, loras=files[1:])  # the first one's factors are kept
    assert model.held == with_one + 2_000
    store.open(model)
    graph = sum(record.size for record in model.package.manifest.components["unet"].files)
    assert model.held > alone + graph
    store.memory_limit = with_one
    store.open(model, loras=files[1:])  # it is opened anew
    assert model.held == with_one and model.loras == {files[1]}
    with pytest.raises(InvalidArgumentError, match="--memory-limit"):
        store.check_need(model, model.package.manifest.default_size, 1, loras=files)
    store.close()


def test_a_job_opens_its_model_for_its_size(demo_package: Path) -> None:
    asked: list[object] = []
    with live_server({"a": demo_package}) as live, pytest.MonkeyPatch.context() as patch:
        opened = live.service.models.open

        def noted(model: Model, *need: object, **further: object) -> Pipeline:
            asked.extend((*need, *further.values()))
            return opened(model)

        patch.setattr(live.service.models, "open", noted)
        job = {**JOB, "num_images_per_prompt": 2, "width": 96}
        assert live.finished(job)["status"] == "done"
    assert asked == [(96, 64), 2, [], ()]


def test_requests_name_models_and_larger_images_need_more(demo_package: Path) -> None:
    store = ModelStore({"a": demo_package, "b": demo_package})
    assert store.model(None).name == "a" and store.model("b").name == "b"
    for name in ("c", "", "../a", str(demo_package)):
        with pytest.raises(InvalidArgumentError, match="the server has a, b"):
            store.model(name)
    model = store.model("a")
    small, large = store.need(model, (64, 64)), store.need(model, (1024, 1024))
    assert small is not None and large is not None and large > 2 * small
    store.check_need(model, (1024, 1024), 1)
    store.memory_limit = (small + large) // 2
    store.check_need(model, (64, 64), 1)
    with pytest.raises(InvalidArgumentError, match=r"1 images of 1024x1024 need about .* GB"):
        store.check_need(model, (1024, 1024), 1)


def test_no_model_and_wrong_folders_are_named(demo_package: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="at least one"):
        ModelStore({})
    with pytest.raises(FileNotFoundError):
        ModelStore({"a": tmp_path / "none"})


def test_a_server_of_two_models_uses_both(demo_package: Path) -> None:
    with live_server({"a": demo_package, "b": demo_package}) as live:
        for name in ("b", "a"):
            job = live.finished({**JOB, "model": name, "seed": 1})
            assert job["status"] == "done" and job["model"] == name
        assert live.json("GET", "/v1/server")[1]["models"][1]["open"]
