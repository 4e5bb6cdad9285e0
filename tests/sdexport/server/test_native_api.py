"""The server's own API, with the demo model: its images are the library's."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdexport import Pipeline
from sdexport.runtime.images.metadata import save_image
from sdexport.runtime.result import Result
from sdexport.server import image_service
from sdexport.server.event_clients import EventTexts
from sdexport.server.image_request import ImageRequest
from sdexport.server.jobs import Job, JobEvent
from tests.helpers.live_server import PATIENCE, LiveServer, live_server, wait_until

STEPS = {"num_inference_steps": 2, "width": 64, "height": 64}


def image_of(server: LiveServer, job: Any, index: int = 0, query: str = "") -> Image.Image:
    status, _, content = server.request("GET", job["images"][index]["url"] + query)
    assert status == 200, content
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def assert_same_file(server: LiveServer, job: Any, result: Result, index: int = 0) -> None:
    """The file from the server has the bytes of the library's."""
    own = io.BytesIO()
    save_image(result.images[index], own)
    content = server.request("GET", job["images"][index]["url"])[2]
    assert content == own.getvalue()


def encoded(image: Image.Image, format: str = "PNG") -> str:  # noqa: A002
    file = io.BytesIO()
    image.save(file, format)
    return base64.b64encode(file.getvalue()).decode()


def events_of(server: LiveServer, url: str) -> list[tuple[str, Any]]:
    status, headers, content = server.request("GET", f"{url}/events")
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    found = []
    for block in content.decode().split("\n\n"):
        lines = dict(
            line.split(": ", 1) for line in block.split("\n") if not line.startswith(":") and line
        )
        if lines:
            found.append((lines["event"], json.loads(lines["data"])))
    return found


def test_image_and_its_settings_are_those_of_the_library(
    server: LiveServer, demo_pipe: Pipeline
) -> None:
    settings = {
        "prompt": "a red circle",
        "negative_prompt": "blue",
        "seed": 7,
        "scheduler": "euler_a",
        "schedule": "karras",
        "guidance_scale": 5,
        **STEPS,
        "height": 96,
    }
    job = server.finished(settings)
    assert job["status"] == "done", job
    result = demo_pipe(**settings)
    assert_same_file(server, job, result)
    parameters = json.loads(result.parameters[0].to_json())
    assert job["images"][0]["parameters"] == parameters
    assert set(job["seconds"]) == {"encode", "denoise", "decode"}


def test_images_of_one_request_are_those_of_one_call(
    server: LiveServer, demo_pipe: Pipeline
) -> None:
    settings = {"prompt": ["a red circle", "a blue star"], "seed": 3, **STEPS}
    job = server.finished(settings)
    result = demo_pipe(**settings)
    for index in range(2):
        assert_same_file(server, job, result, index)


def test_image_to_image_and_inpainting(server: LiveServer, demo_pipe: Pipeline) -> None:
    start = Image.new("RGB", (64, 64), "green")
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (16, 16, 48, 48))
    settings = {"prompt": "a star", "strength": 0.9, "seed": 1, **STEPS}
    job = server.finished({**settings, "image": encoded(start)})
    assert_same_file(server, job, demo_pipe(**settings, image=start))
    body = {"image": f"data:image/png;base64,{encoded(start)}", "mask_image": encoded(mask)}
    job = server.finished({**settings, **body, "paste_back": True})
    assert_same_file(
        server, job, demo_pipe(**settings, image=start, mask_image=mask, paste_back=True)
    )


def test_random_seed_is_drawn_and_named(server: LiveServer, demo_pipe: Pipeline) -> None:
    job = server.finished({"prompt": "a star", "seed": -1, **STEPS})
    seed = job["images"][0]["parameters"]["seed"]
    assert seed >= 0
    assert_same_file(server, job, demo_pipe("a star", seed=seed, **STEPS))
    job = server.finished({"prompt": "a star", "num_images_per_prompt": 2, **STEPS})
    first, second = (each["parameters"]["seed"] for each in job["images"])
    assert first != second


def test_events_are_steps_with_previews_and_the_end(server: LiveServer) -> None:
    body = {"prompt": "a star", "num_inference_steps": 3, "previews": True, "seed": 1}
    _, job = server.json("POST", "/v1/jobs", body)
    events = events_of(server, job["url"])
    assert events[-1][0] == "done" and events[-1][1]["images"][0]["url"].endswith("/images/0")
    steps = [data for kind, data in events if kind == "step"]
    assert [data["steps"] for data in steps] == [3] * len(steps) and steps
    assert steps[-1]["step"] == 3 and steps[-1]["timestep"] < 400
    start = "data:image/png;base64,"
    previews = [data["preview"] for data in steps]
    assert all(each.startswith(start) for each in previews)
    with Image.open(io.BytesIO(base64.b64decode(previews[-1][len(start) :]))) as preview:
        assert preview.size == (256, 256) and preview.convert("L").getextrema() != (0, 0)
    again = events_of(server, job["url"])  # of a job that is over: only how it ended
    assert [kind for kind, _ in again] == ["done"]


def test_formats_carry_the_settings(server: LiveServer) -> None:
    job = server.finished({"prompt": "a star", "seed": 5, **STEPS})
    for query, kind in (("", "PNG"), ("?format=jpeg&quality=80", "JPEG"), ("?format=webp", "WEBP")):
        image = image_of(server, job, query=query)
        assert image.format == kind
        assert "Seed: 5" in str(image.info) or "exif" in image.info
    for query in (
        "?format=bmp",
        "?format=png&quality=80",
        "?quality=x",
        "?quality=1000&format=webp",
    ):
        status, body = server.json("GET", job["images"][0]["url"] + query)
        assert status == 400 and body["error"]["type"] == "invalid_request", query


def test_unknown_jobs_and_images_are_404(server: LiveServer) -> None:
    job = server.finished({"prompt": "a star", **STEPS})
    for path in ("/v1/jobs/none", "/v1/jobs/none/events", f"{job['url']}/images/1"):
        status, body = server.json("GET", path)
        assert status == 404 and body["error"]["type"] == "not_found"
    assert server.json("DELETE", "/v1/jobs/none")[0] == 404
    assert server.json("GET", f"{job['url']}/images/-1")[0] == 404


def test_cancelling_a_running_job_ends_it_within_a_step(server: LiveServer) -> None:
    _, job = server.json("POST", "/v1/jobs", {"prompt": "a star", "num_inference_steps": 150})
    wait_until(lambda: server.json("GET", job["url"])[1]["step"] >= 1)
    status, state = server.json("DELETE", job["url"])
    assert status == 200 and state["status"] == "cancelled"
    assert state["error"]["type"] == "cancelled"
    wait_until(lambda: not server.service.queue.busy)
    assert server.json("GET", job["url"])[1]["step"] <= state["step"] + 1
    assert server.json("DELETE", job["url"])[0] == 200  # again, and nothing happens
    assert server.finished({"prompt": "a star", **STEPS})["status"] == "done"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": []}, "at least one prompt"),
        ({"prompt": "x" * 20_001}, "20,001 characters; at most 20,000"),
        ({"prompt": "x", "steps": 4}, "use num_inference_steps"),
        ({"prompt": "x", "nonsense": 4}, "nonsense"),
        ({"prompt": "x", "num_inference_steps": 151}, "1 to 150"),
        ({"prompt": "x", "num_inference_steps": 2.5}, "num_inference_steps"),
        ({"prompt": "x", "width": 8192, "height": 8192}, "67,108,864 pixels; the limit is 4,194"),
        ({"prompt": "x", "width": 65}, "multiple of 8"),
        ({"prompt": "x", "width": 10**30}, "width"),
        ({"prompt": "x", "num_images_per_prompt": 9}, "1 to 8"),
        ({"prompt": ["x"] * 9}, "at most 8 images"),
        ({"prompt": "x", "seed": [1, 2]}, "2 seeds for 1 images"),
        ({"prompt": "x", "seed": 2**64}, "seed"),
        ({"prompt": "x", "model": "none"}, "the server has demo"),
        ({"prompt": "x", "scheduler": "/etc/passwd"}, "scheduler"),
        ({"prompt": "x", "scheduler": "euler", "schedule": "none"}, "schedule"),
        ({"prompt": "x", "scheduler_options": {"num_train_timesteps": 10**9}}, "at most 100,000"),
        ({"prompt": "x", "image": "/etc/passwd"}, "no address or path is opened"),
        ({"prompt": "x", "image": "http://127.0.0.1/a.png"}, "no address or path is opened"),
        ({"prompt": "x", "image": "file:///etc/passwd"}, "no address or path is opened"),
        ({"prompt": "x", "mask_image": "AAAA"}, "mask_image"),
        ({"prompt": "x", "loras": [{"name": "../../etc/passwd"}]}, "unknown name"),
        ({"prompt": "x", "controlnets": [{"name": "/tmp", "image": "AAAA"}]}, "controlnets"),
        ({"prompt": "x", "latents": [1]}, "arrays are not sent"),
        ({"prompt": "x", "output_type": "latent"}, "image files"),
        ({"prompt": "x", "guidance_scale": -1}, "guidance_scale"),
        ({"prompt": "x", "strength": 7}, "strength"),
        ({"prompt": "x", "prompt_style": "x"}, "prompt"),
        ({"prompt": "x", "timeout": 0}, "timeout"),
        ({"prompt": "x", "timeout": 601}, "at most 600 s"),
        ({"prompt": "x", "mask_blur": 1e9}, "mask_blur"),
    ],
)  # fmt: skip
def test_bad_settings_are_400_and_named(server: LiveServer, body: Any, says: str) -> None:
    status, answer = server.json("POST", "/v1/jobs", body)
    assert status == 400, answer
    assert answer["error"]["type"] == "invalid_request"
    message = answer["error"]["message"]
    assert says in message and "\n" not in message and "Traceback" not in message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"prompt"',
        b'{"prompt": NaN}',
        b'{"prompt": "x", "guidance_scale": Infinity}',
        b'{"prompt": "x", "guidance_scale": 1e999}',
        b'{"prompt": "x", "prompt": "y"}',
        b'{"prompt": "x", "seed": 1' + b"0" * 5000 + b"}",
        b"[" * 100_000,
        b'{"prompt":' * 100 + b"1" + b"}" * 100,
        b'{"prompt": "\xff\xfe"}',
        b"\xff\xfe{\x00}\x00",
        b'{"prompt": ["' + b'","' * 200_000 + b'"]}',
    ],
)
def test_bodies_that_are_no_request_are_400(server: LiveServer, body: bytes) -> None:
    status, _, content = server.request(
        "POST", "/v1/jobs", body, {"Content-Type": "application/json"}
    )
    assert status == 400, content
    assert set(json.loads(content)) == {"error"}


def test_unusual_text_is_generated_or_named(server: LiveServer) -> None:
    for prompt in ("\0", "\ud800", "👩‍🎨 ünïcödé \u202e", "<lora:x:1>", "{{" * 50, ""):
        body = json.dumps({"prompt": prompt, **STEPS}).encode()
        status, _, content = server.request(
            "POST", "/v1/jobs", body, {"Content-Type": "application/json"}
        )
        assert status in (202, 400), content
        if status == 202:
            url = json.loads(content)["url"]
            events = events_of(server, url)
            assert events[-1][0] in ("done", "failed")
            if events[-1][0] == "failed":
                assert events[-1][1]["error"]["type"] == "invalid_request", events


def test_state_of_the_server(server: LiveServer) -> None:
    assert server.json("GET", "/healthz") == (200, {"status": "ok"})
    assert server.json("GET", "/readyz") == (200, {"status": "ready"})
    _, found = server.json("GET", "/v1/server")
    (model,) = found["models"]
    assert model["name"] == "demo" and model["default_size"] == [128, 128]
    assert "euler_a" in found["schedulers"] and "karras" in found["schedules"]
    assert found["limits"]["max_steps"] == 150
    server.finished({"prompt": "a star", **STEPS})
    text = server.request("GET", "/metrics")[2].decode()
    for name in ("queue_length", "jobs_total", "images_total", "step_seconds", "stage_seconds"):
        assert f"sdexport_{name}" in text
    assert "sdexport_models_open 1.0" in text and "process_resident_memory_bytes" in text


def test_openapi_document_describes_every_setting(server: LiveServer) -> None:
    from sdexport.server.job_request import JobRequest
    from sdexport.server.request_checks import argument_names

    status, document = server.json("GET", "/openapi.json")
    assert status == 200
    schema = document["components"]["schemas"]["JobRequest"]
    own = {"model", "previews", "timeout"}
    assert set(schema["properties"]) - own == set(argument_names())
    assert set(JobRequest.model_fields) - own == set(argument_names())
    assert schema["examples"]
    for example in schema["examples"]:
        example = {**example, **STEPS}
        assert server.finished(example)["status"] == "done"


def test_warnings_are_those_of_the_library(server: LiveServer) -> None:
    body = {"prompt": "word " * 80, "negative_prompt": "(red:1.2)", "guidance_scale": 2, **STEPS}
    warnings = server.finished(body)["warnings"]
    assert any("truncated to the first 75" in text for text in warnings)
    assert any("are read as words" in text or "is read as words" in text for text in warnings)
    assert "warnings" not in server.finished({"prompt": "a star", **STEPS})


def test_previews_do_not_change_the_image(server: LiveServer) -> None:
    settings = {"prompt": "a square", "seed": 9, "scheduler": "dpm++_2m", "num_inference_steps": 3}
    first = server.finished({**settings, "previews": True})
    second = server.finished(settings)
    images = [np.asarray(image_of(server, job)) for job in (first, second)]
    assert np.array_equal(*images)


def test_closing_waits_for_images_that_were_not_fetched(
    demo_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_service, "_FETCHING", PATIENCE)
    with live_server({"demo": demo_package}) as live:
        body = {"prompt": "a star", "num_inference_steps": 1, "num_images_per_prompt": 2}
        job = live.finished({**body, "width": 64, "height": 64})
        closing = threading.Thread(target=live.service.close, args=(PATIENCE,))
        closing.start()
        for index in range(2):
            wait_until(lambda: live.service.queue.join(0.0))
            closing.join(0.5)
            assert closing.is_alive()
            assert live.request("GET", job["images"][index]["url"])[0] == 200
        closing.join(PATIENCE / 2)
        assert not closing.is_alive()


def test_the_text_of_an_event_is_made_once_for_all_streams() -> None:
    made: list[JobEvent] = []

    async def make(job: Job, event: JobEvent) -> str:
        made.append(event)
        await asyncio.sleep(0)
        return event.kind

    async def run() -> list[str]:
        texts, job = EventTexts(make), Job(ImageRequest("demo", {}), 1)
        events = JobEvent("step", 1), JobEvent("step", 2)
        found = [await asyncio.gather(*(texts.of(job, each) for _ in range(5))) for each in events]
        last = JobEvent("done")
        task = asyncio.ensure_future(texts.of(job, last))
        await asyncio.sleep(0)
        other = asyncio.ensure_future(texts.of(job, last))
        await asyncio.sleep(0)
        task.cancel()  # this client went away; the other one gets its text
        return [*found[0], *found[1], await other]

    assert asyncio.run(run()) == ["step"] * 10 + ["done"]
    assert len(made) == 3
