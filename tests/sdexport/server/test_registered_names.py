"""LoRAs and adapters by the names that the server gives them; the images are the library's."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdexport import ControlNet, load_pipeline
from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.engines.errors import InvalidArgumentError
from sdexport.server.registered_names import RegisteredNames
from tests.helpers.live_server import LiveServer, live_server
from tests.helpers.lora_files import ATTENTION, random_lora, save_peft

JOB: dict[str, Any] = {"prompt": "a star", "num_inference_steps": 2, "seed": 1}


@pytest.fixture(scope="module")
def lora_dir(lora_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two LoRAs in a folder, one of them in a folder inside of it."""
    folder = tmp_path_factory.mktemp("loras")
    (folder / "more").mkdir()
    checkpoint = Checkpoint.open(lora_folder / "checkpoint")
    pairs = random_lora({"unet": checkpoint.load("unet")}, ATTENTION)
    for name in ("style", "more/other style"):
        save_peft(folder / f"{name}.safetensors", pairs)
    return folder


@pytest.fixture(scope="module")
def adapted(
    lora_package: Path, lora_dir: Path, control_folder: Path
) -> Iterator[tuple[LiveServer, Path]]:
    net = control_folder / "first"
    with live_server(
        {"model": lora_package}, lora_dir=lora_dir, adapters={"controlnets": {"edges": net}}
    ) as live:
        yield live, net


def encoded(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def recorded(result: Any) -> Any:
    return json.loads(result.parameters[0].to_json())


def test_loras_and_controlnets_are_used_by_name(
    adapted: tuple[LiveServer, Path], lora_package: Path, lora_dir: Path
) -> None:
    live, net = adapted
    found = live.json("GET", "/v1/server")[1]
    assert found["loras"] == ["other style", "style"] and found["controlnets"] == ["edges"]
    control = Image.new("RGB", (64, 64), "white")
    with load_pipeline(lora_package, lora_dir=lora_dir) as pipe:
        job = live.finished({**JOB, "loras": [{"name": "style", "scale": 0.5}]})
        own = pipe(**JOB, loras=[(lora_dir / "style.safetensors", 0.5)])
        assert job["images"][0]["parameters"] == recorded(own)
        tagged = {**JOB, "prompt": "a star <lora:style:0.5>"}
        job = live.finished(tagged)
        assert job["images"][0]["parameters"] == recorded(pipe(**tagged))
        net_item = {"name": "edges", "image": encoded(control), "scale": 0.7, "end": 0.5}
        job = live.finished({**JOB, "controlnets": [net_item]})
        own = pipe(**JOB, controlnets=[ControlNet(net, control, scale=0.7, end=0.5)])
        assert job["images"][0]["parameters"] == recorded(own)
        content = live.request("GET", job["images"][0]["url"])[2]
        with Image.open(io.BytesIO(content)) as image:
            assert image.tobytes() == own.images[0].tobytes()


@pytest.mark.parametrize(
    ("further", "says"),
    [
        ({"loras": [{"name": "none"}]}, "the server has other style, style"),
        ({"loras": [{"name": "../style"}]}, "unknown name"),
        ({"loras": [{"name": "style"}] * 9}, "at most 8"),
        ({"loras": [{"name": "style", "scale": "1"}]}, "scale"),
        ({"loras": "style"}, "loras"),
        ({"prompt": "<lora:none:1>"}, "the server has other style, style"),
        ({"prompt": "<lora:style:1>" * 9}, "at most 8"),
        ({"controlnets": [{"name": "none", "image": "AAAA"}]}, "the server has edges"),
        ({"controlnets": [{"name": "edges", "image": "AAAA"}]}, "cannot be read"),
        ({"controlnets": [{"name": "edges"}]}, "image"),
        ({"controlnets": [{"name": "edges", "image": "AAAA", "package": "/tmp"}]}, "package"),
        ({"t2i_adapters": [{"name": "x", "image": "AAAA"}]}, "t2i_adapters"),
        ({"ip_adapters": [{"name": "x", "images": []}]}, "the server has none"),
    ],
)
def test_unknown_names_are_400(
    adapted: tuple[LiveServer, Path], further: dict[str, Any], says: str, lora_dir: Path
) -> None:
    status, answer = adapted[0].json("POST", "/v1/jobs", {**JOB, **further})
    assert status == 400 and says in answer["error"]["message"], answer
    assert str(lora_dir) not in answer["error"]["message"]


def test_adapters_of_another_kind_are_rejected_at_the_start(
    demo_package: Path, control_folder: Path, tmp_path: Path
) -> None:
    net = control_folder / "first"
    RegisteredNames(None, {"controlnets": {"a": net}})
    for argument in ("t2i_adapters", "ip_adapters"):
        with pytest.raises(InvalidArgumentError, match="expected the package of"):
            RegisteredNames(None, {argument: {"a": net}})
    with pytest.raises(InvalidArgumentError, match="expected the package of"):
        RegisteredNames(None, {"controlnets": {"a": demo_package}})
    with pytest.raises(FileNotFoundError):
        RegisteredNames(None, {"controlnets": {"a": tmp_path / "none"}})
    with pytest.raises(NotADirectoryError):
        RegisteredNames(tmp_path / "none")
