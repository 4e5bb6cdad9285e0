"""Input images of requests: they are counted before they are decoded, and until jobs end."""

from __future__ import annotations

import asyncio
import base64
import io
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from sdexport.engines.errors import InvalidArgumentError
from sdexport.server.automatic1111_controlnet import controlnet_arguments
from sdexport.server.image_request import ImageRequest
from sdexport.server.input_images import ImageBudget, RequestImages
from sdexport.server.jobs import Job
from sdexport.server.native_api import with_images
from sdexport.server.registered_names import RegisteredNames
from sdexport.server.server_errors import JobCancelledError, QueueFullError
from sdexport.server.server_settings import ServerSettings
from tests.helpers.live_server import LiveServer

SETTINGS = ServerSettings(max_input_pixels=150)
JOB = {"prompt": "a star", "seed": 1}
FORM = {"Content-Type": "multipart/form-data; boundary=x"}


def png(side: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(file, "PNG")
    return file.getvalue()


def edit_form(content: bytes) -> bytes:
    part = b'--x\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    fields = [(b"prompt", b"", b"a star"), (b"num_inference_steps", b"", b"2")]
    fields.append((b"image", b'; filename="a.png"', content))
    return b"".join(part % field for field in fields) + b"--x--\r\n"


def test_pixels_of_a_request_are_summed_before_they_are_decoded() -> None:
    budget = ImageBudget(SETTINGS.max_held)
    broken = png(10)[:-30]  # its size can be read, and no more
    with RequestImages(SETTINGS, budget) as images:
        assert images.read(png(10), "a").size == (10, 10)
        assert budget.held == 400
        with pytest.raises(InvalidArgumentError, match="200 pixels or more; at most 150"):
            images.read(broken, "b")
    assert budget.held == 0
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        RequestImages(SETTINGS).read(broken, "b")


def test_requests_share_the_room_until_their_jobs_end() -> None:
    budget = ImageBudget(500, lambda: 7)
    job = Job(ImageRequest("demo", {}), 1)
    with RequestImages(SETTINGS, budget) as first:
        first.read(png(10), "a")
        first.keep_for(job)
    with RequestImages(SETTINGS, budget) as second:
        second.read(png(5), "a")
        with pytest.raises(QueueFullError, match="hold 400 bytes") as caught:
            second.read(png(10), "a")
    assert caught.value.retry_after == 7 and budget.held == 400
    assert job.cancel(JobCancelledError("gone")) and budget.held == 0
    with RequestImages(SETTINGS, ImageBudget(1)) as alone:  # fits, as nobody else has any
        alone.read(png(10), "a")


@pytest.mark.parametrize(
    ("count", "message"), [(9, "at most 8 in a request"), (1, "unknown name 'edges'")]
)
@pytest.mark.parametrize("argument", ["controlnets", "t2i_adapters", "ip_adapters"])
def test_adapters_are_checked_before_their_images(argument: str, count: int, message: str) -> None:
    service: Any = SimpleNamespace(names=RegisteredNames())
    items = [{"name": "edges", "image": "!", "images": "!"} for _ in range(count)]
    with pytest.raises(InvalidArgumentError, match=message):
        asyncio.run(with_images(service, {argument: items}, RequestImages(SETTINGS)))


@pytest.mark.parametrize(("count", "message"), [(9, "at most 8"), (1, "unknown model 'none'")])
def test_units_are_checked_before_their_images(count: int, message: str) -> None:
    units = [{"model": "none", "image": "!"}] * count
    with pytest.raises(InvalidArgumentError, match=message):
        controlnet_arguments(units, ["edges"], (32, 32), RequestImages(SETTINGS))


def requests_with_an_image(content: bytes) -> list[tuple[str, Any, dict[str, str]]]:
    """Path, body and headers of a request in each API."""
    text = base64.b64encode(content).decode()
    size = {"width": 64, "height": 64}
    return [
        ("/v1/jobs", {**JOB, "num_inference_steps": 2, "image": text}, {}),
        ("/sdapi/v1/img2img", {**JOB, **size, "steps": 2, "init_images": [text]}, {}),
        ("/v1/images/edits", edit_form(content), FORM),
        ("/sdapi/v1/png-info", {"image": text}, {}),
    ]


def test_every_api_gives_the_room_back(server: LiveServer) -> None:
    budget, seen = server.service.image_budget, []
    reserve = budget.reserve

    def noted(size: int, own: int) -> None:
        reserve(size, own)
        seen.append(size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "reserve", noted)
        for path, body, headers in requests_with_an_image(png(64)):
            status, _, content = server.request("POST", path, body, headers)
            assert status in (200, 202), content
        rejected = {**JOB, "image": base64.b64encode(png(64)).decode(), "width": 3}
        assert server.finished({**JOB, "num_inference_steps": 1})["status"] == "done"
        assert server.request("POST", "/v1/jobs", rejected)[0] == 400
    assert seen == [4 * 64 * 64] * 5 and budget.held == 0


def test_a_full_queue_decodes_nothing(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise QueueFullError("full", 3)

    monkeypatch.setattr(server.service.queue, "check_room", full)
    for path, body, headers in requests_with_an_image(b"no image")[:3]:
        status, found, content = server.request("POST", path, body, headers)
        assert status == 429 and found["retry-after"] == "3", content
