"""A ControlNet-XS by the name that the server gives it; the images are the library's."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdexport import ControlNet, Pipeline, load_pipeline
from tests.helpers.control_nets import control_image
from tests.helpers.live_server import LiveServer, live_server

JOB: dict[str, Any] = {
    "prompt": "a red circle",
    "num_inference_steps": 3,
    "seed": 3,
    "width": 64,
    "height": 64,
}
EDGES = control_image(64, 64)


def encoded(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture(scope="module")
def live(xs_folder: Path) -> Iterator[LiveServer]:
    adapters = {"controlnets": {"edges": xs_folder / "xs"}}
    with live_server({"model": xs_folder / "package"}, adapters=adapters) as live:
        yield live


@pytest.fixture(scope="module")
def pipe(xs_folder: Path) -> Iterator[Pipeline]:
    with load_pipeline(xs_folder / "package") as pipeline:
        yield pipeline


@pytest.mark.parametrize("end", [1.0, 0.5])
def test_image_is_that_of_the_library(
    end: float, live: LiveServer, pipe: Pipeline, xs_folder: Path
) -> None:
    assert live.json("GET", "/v1/server")[1]["controlnets"] == ["edges"]
    settings = {"scale": 0.8, "end": end}
    item = {"name": "edges", "image": encoded(EDGES), **settings}
    job = live.finished({**JOB, "controlnets": [item]})
    assert job["status"] == "done", job
    own = pipe(**JOB, controlnets=[ControlNet(xs_folder / "xs", EDGES, **settings)]).images[0]
    content = live.request("GET", job["images"][0]["url"])[2]
    with Image.open(io.BytesIO(content)) as image:
        assert image.tobytes() == own.tobytes()
    plain = live.finished(JOB)
    content = live.request("GET", plain["images"][0]["url"])[2]
    with Image.open(io.BytesIO(content)) as image:
        assert image.tobytes() == pipe(**JOB).images[0].tobytes() != own.tobytes()


def test_api_of_automatic1111_takes_it(live: LiveServer) -> None:
    unit: dict[str, Any] = {"enabled": True, "model": "edges", "image": encoded(EDGES)}
    body = {
        "prompt": JOB["prompt"],
        "steps": 3,
        "width": 64,
        "height": 64,
        "alwayson_scripts": {"controlnet": {"args": [unit]}},
    }
    status, answer = live.json("POST", "/sdapi/v1/txt2img", body)
    assert status == 200 and len(answer["images"]) == 1, answer
    unit["control_mode"] = "ControlNet is more important"
    status, answer = live.json("POST", "/sdapi/v1/txt2img", body)
    assert status >= 400 and "guess_mode" in str(answer)


@pytest.mark.parametrize(
    ("further", "says"),
    [
        ({"guess_mode": True}, "edges is a ControlNet-XS, which has no guess_mode"),
        ({"mode": "canny"}, "has no modes"),
    ],
)
def test_what_it_does_not_take_is_named(
    further: dict[str, Any], says: str, live: LiveServer
) -> None:
    item = {"name": "edges", "image": encoded(EDGES), **further}
    job = live.finished({**JOB, "controlnets": [item]})
    assert job["status"] == "failed" and says in job["error"]["message"], job
