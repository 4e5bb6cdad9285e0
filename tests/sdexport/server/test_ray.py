"""The server on Ray Serve: two replicas on two processors, killed, added and removed under load."""

from __future__ import annotations

import base64
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

from sdexport import Pipeline, load_pipeline
from tests.helpers.live_server import PATIENCE, wait_until
from tests.helpers.ray_process import TITLE, RayProcess, ray_process

pytest.importorskip("ray", reason="Ray is not installed: pip install 'sdexport[ray]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="finds Ray's processes in /proc"),
]
PROMPT = "a large red circle"
LONG = {"prompt": PROMPT, "num_inference_steps": 150, "seed": 1}
WORKER = "ImageWorker"


@pytest.fixture(scope="module")
def ray_server(demo_package: Path) -> Iterator[RayProcess]:
    arguments = {"package": {"demo": str(demo_package)}, "min_replicas": 1, "max_replicas": 2}
    delays = {"upscale_delay_s": 1, "downscale_delay_s": 3, "grace": 1}
    with ray_process(**arguments, **delays) as found:
        wait_until(lambda: found.request("GET", "/readyz")[0] == 200)
        yield found


@pytest.fixture(scope="module")
def one_thread(demo_package: Path) -> Iterator[Pipeline]:
    """The library with as many threads as a replica."""
    with load_pipeline(demo_package, threads=1) as pipeline:
        yield pipeline


def image_of(server: RayProcess, job: Any) -> Image.Image:
    status, _, content = server.request("GET", job["images"][0]["url"])
    assert status == 200, content
    return Image.open(io.BytesIO(content)).convert("RGB")


def assert_same(image: Image.Image, pipe: Pipeline, **arguments: Any) -> None:
    """Byte for byte the pixels of the library's."""
    assert image.tobytes() == pipe(PROMPT, **arguments).images[0].tobytes()


def test_page_and_state(ray_server: RayProcess) -> None:
    status, headers, content = ray_server.request("GET", "/")
    assert status == 200 and b"<html" in content and "content-security-policy" in headers
    status, described = ray_server.json("GET", "/v1/server")
    assert status == 200 and described["models"][0]["name"] == "demo"
    assert described["models"][0]["open"] is True
    assert b"sdexport_queue_length 0.0" in ray_server.request("GET", "/metrics")[2]
    assert ray_server.request("GET", "/openapi.json")[0] == 200
    status, body = ray_server.json("GET", "/v1/server", Host="evil.example")
    assert status == 403 and body["error"]["type"] == "forbidden"


def test_nothing_of_the_cluster_is_reached_from_other_machines(ray_server: RayProcess) -> None:
    """But for Ray Serve's own ports of replicas, which ask for Ray's token."""
    found = ray_server.reachable()
    assert [title for title in found if not title.startswith(TITLE)] == []


def test_images_are_those_of_the_library(ray_server: RayProcess, one_thread: Pipeline) -> None:
    settings = {"num_inference_steps": 4, "seed": 11, "scheduler": "euler_a"}
    job = ray_server.finished({"prompt": PROMPT, **settings})
    assert job["status"] == "done", job
    assert_same(image_of(ray_server, job), one_thread, **settings)
    failed = ray_server.json("POST", "/v1/jobs", {"prompt": PROMPT, "width": 3})
    assert failed[0] == 400 and "width" in failed[1]["error"]["message"]


def test_openai_client_with_previews(ray_server: RayProcess, one_thread: Pipeline) -> None:
    client = openai.OpenAI(
        base_url=f"http://127.0.0.1:{ray_server.port}/v1", api_key="none", max_retries=0
    )
    settings = {"num_inference_steps": 6, "seed": 3}
    with client:
        stream = client.images.generate(
            prompt=PROMPT, stream=True, partial_images=2, extra_body=settings
        )
        kinds = [(event.type, event.b64_json) for event in stream]
    assert [kind.rpartition(".")[2] for kind, _ in kinds] == ["partial_image"] * 2 + ["completed"]
    image = Image.open(io.BytesIO(base64.b64decode(kinds[-1][1])))
    assert_same(image.convert("RGB"), one_thread, **settings)


def test_automatic1111_progress_and_interrupt(ray_server: RayProcess) -> None:
    before = ended(ray_server, "cancelled")
    body = {"prompt": PROMPT, "steps": 150, "seed": 1}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ray_server.json, "POST", "/sdapi/v1/txt2img", body)
        wait_until(lambda: ray_server.json("GET", "/sdapi/v1/progress")[1]["progress"] > 0)
        assert ray_server.json("POST", "/sdapi/v1/interrupt")[0] == 200
        status, found = answer.result(PATIENCE)
    assert status == 200 and found["images"] == []  # and not the image of 150 steps
    assert ended(ray_server, "cancelled") == before + 1
    assert b"sdexport_jobs_running 0.0" in ray_server.request("GET", "/metrics")[2]


def test_cancelled_job_frees_its_replica(ray_server: RayProcess) -> None:
    wait_until(lambda: ray_server.replicas() == 1)
    (pid,) = ray_server.pids(WORKER)
    before = processor_seconds(pid)
    whole = ray_server.finished(LONG)
    assert whole["status"] == "done"
    needed = processor_seconds(pid) - before  # by 150 steps
    _, job = ray_server.json("POST", "/v1/jobs", LONG)
    wait_until(lambda: ray_server.json("GET", job["url"])[1]["step"] >= 1)
    status, cancelled = ray_server.json("DELETE", job["url"])
    assert status == 200 and cancelled["status"] == "cancelled" and cancelled["step"] < 75
    before = processor_seconds(pid)
    after = ray_server.finished({"prompt": PROMPT, "num_inference_steps": 1, "seed": 1})
    assert after["status"] == "done"
    assert processor_seconds(pid) - before < needed / 2  # the rest was not generated


def test_client_that_goes_away_cancels_its_job(ray_server: RayProcess) -> None:
    before = ended(ray_server, "cancelled")
    client = openai.OpenAI(
        base_url=f"http://127.0.0.1:{ray_server.port}/v1", api_key="none", max_retries=0, timeout=1
    )
    with client, suppress(openai.APITimeoutError):
        client.images.generate(prompt=PROMPT, extra_body={"num_inference_steps": 150, "seed": 1})
    wait_until(lambda: ended(ray_server, "cancelled") == before + 1)


def processor_seconds(pid: int) -> float:
    """What a process has used."""
    parts = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
    return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")


def ended(server: RayProcess, status: str) -> float:
    """Jobs that ended so, by the server's metrics."""
    text = server.request("GET", "/metrics")[2].decode()
    lines = [line for line in text.splitlines() if line.startswith("sdexport_jobs_total{")]
    return sum(float(line.split()[1]) for line in lines if f'status="{status}"' in line)


def test_a_killed_replica_loses_no_request_and_replicas_follow_the_load(
    ray_server: RayProcess, one_thread: Pipeline
) -> None:
    wait_until(lambda: ray_server.replicas() == 1)
    settings = {"num_inference_steps": 12, "width": 128, "height": 128}
    seeds = iter(range(100_000))
    found: dict[int, Any] = {}
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            seed = next(seeds)
            found[seed] = ray_server.finished({"prompt": PROMPT, "seed": seed, **settings})

    with ThreadPoolExecutor(12) as pool:
        clients = [pool.submit(client) for _ in range(12)]
        try:
            wait_until(lambda: ray_server.replicas() == 2)
            wait_until(lambda: len(ray_server.pids(WORKER)) == 2)
            for _ in range(2):
                os.kill(ray_server.pids(WORKER)[0], signal.SIGKILL)
                time.sleep(2)  # jobs run on the other one
            wait_until(lambda: ray_server.replicas() == 2)
        finally:
            stop.set()
        for each in clients:
            each.result(PATIENCE)
    assert {job["status"] for job in found.values()} == {"done"}
    for seed in list(found)[:3] + list(found)[-3:]:
        assert_same(image_of(ray_server, found[seed]), one_thread, seed=seed, **settings)
    text = ray_server.request("GET", "/metrics")[2].decode()
    batches = float(text.split("sdexport_batch_images_count ")[1].split()[0])
    images = float(text.split("sdexport_batch_images_sum ")[1].split()[0])
    assert images > 1.5 * batches  # they ran together
    assert 'status="failed"' not in text
    wait_until(lambda: ray_server.replicas() == 1)


def test_a_job_that_is_cancelled_while_it_waits_starts_no_worker(demo_package: Path) -> None:
    arguments = {"package": {"demo": str(demo_package)}, "min_replicas": 0, "max_replicas": 1}
    body = {"prompt": PROMPT, "num_inference_steps": 1, "seed": 1}
    with ray_process(**arguments, upscale_delay_s=3, downscale_delay_s=1, grace=1) as server:
        wait_until(lambda: server.request("GET", "/readyz")[0] == 200)
        began = time.monotonic()
        assert server.finished(body)["status"] == "done"
        needed = time.monotonic() - began  # with the start of a worker
        wait_until(lambda: server.replicas() == 0 and not server.pids(WORKER))
        _, job = server.json("POST", "/v1/jobs", body)
        assert server.json("DELETE", job["url"])[1]["status"] == "cancelled"
        until = time.monotonic() + needed
        while time.monotonic() < until:
            assert server.pids(WORKER) == []
            time.sleep(0.2)
        assert server.finished(body)["status"] == "done"  # a new call was made
