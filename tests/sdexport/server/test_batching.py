"""Jobs of different clients in one batch: each image, and its file, is that of its single call."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest

from sdexport import Pipeline
from sdexport.demo_model import PACKAGE_DIR
from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.images.metadata import save_image
from sdexport.runtime.packages.package import Package
from sdexport.runtime.text.tokenizer import ClipTokenizer
from sdexport.server.batching import batch_key, merged_arguments
from sdexport.server.image_request import ImageRequest
from sdexport.server.job_runner import JobRunner
from sdexport.server.jobs import Job
from tests.helpers.live_server import LiveServer
from tests.tolerances import BATCH_LEVELS

BASE = {"num_inference_steps": 2, "width": 64, "height": 64}


@cache
def tokenizers() -> tuple[ClipTokenizer, ...]:
    return (Package.load(PACKAGE_DIR, verify=False).tokenizer("text_encoder"),)


def job_of(arguments: Mapping[str, Any], count: int = 1) -> Job:
    job = Job(ImageRequest("demo", {"seed": 1, **BASE, **arguments}), count)
    job.batch_key = batch_key(job.request, count, tokenizers())
    return job


def run_together(server: LiveServer, jobs: Sequence[Job]) -> None:
    assert len({job.batch_key for job in jobs}) == 1 and jobs[0].batch_key is not None
    JobRunner(server.service.models)(jobs)


def file_of(image: Any) -> bytes:
    file = io.BytesIO()
    save_image(image, file)
    return file.getvalue()


@pytest.mark.parametrize(
    "further",
    [
        {},
        {"scheduler": "euler_a", "guidance_scale": 4.0},
        {"scheduler": "dpmpp_2m_sde", "schedule": "karras", "negative_prompt": "grey"},
        {"guidance_scale": 1.0, "scheduler": "lcm"},
        {"prompt_style": "automatic1111", "clip_skip": 1},
    ],
)
def test_every_image_of_a_batch_is_that_of_its_own_call(
    server: LiveServer, demo_pipe: Pipeline, further: Mapping[str, Any]
) -> None:
    texts: list[dict[str, Any]] = [
        {"prompt": "a red circle", "seed": 1},
        {"prompt": "a blue star on a white ground", "seed": 2},
        {"prompt": ["a square", "two triangles"], "seed": [3, 4]},
    ]
    if "negative_prompt" in further:
        texts[1]["negative_prompt"] = "red, green"
    jobs = [job_of({**further, **each}, 1 + (i == 2)) for i, each in enumerate(texts)]
    run_together(server, jobs)
    for job, each in zip(jobs, texts, strict=True):
        assert job.status == "done", job.error
        own = demo_pipe(**{**BASE, **further, **each})
        assert [str(p) for p in job.parameters] == [str(p) for p in own.parameters]
        assert job.parameters == own.parameters
        for image, single in zip(job.images, own.images, strict=True):
            levels = np.abs(np.asarray(image, int) - np.asarray(single, int)).max()
            assert levels <= BATCH_LEVELS
            if not levels:
                assert file_of(image) == file_of(single)


def test_no_file_holds_the_prompt_of_another_client(server: LiveServer) -> None:
    jobs = [job_of({"prompt": text, "seed": i}) for i, text in enumerate(("secret", "other"))]
    run_together(server, jobs)
    content = file_of(jobs[1].images[0])
    assert b"other" in content and b"secret" not in content


def test_warnings_about_a_prompt_reach_its_client_alone(server: LiveServer) -> None:
    letters = " ".join("abcdefghij" * 10)  # short, and 100 tokens
    jobs = [job_of({"prompt": text}) for text in (letters, "a star", "(a star:1.2)")]
    run_together(server, jobs)
    assert [len(job.warnings) for job in jobs] == [1, 0, 1], [job.warnings for job in jobs]
    assert "truncated" in jobs[0].warnings[0] and "read as words" in jobs[2].warnings[0]


def test_a_bad_job_does_not_spoil_the_others(server: LiveServer) -> None:
    good, bad = job_of({"prompt": "a star"}), job_of({"prompt": "\ud800"})
    run_together(server, [good, bad])
    assert good.status == "done"
    assert bad.status == "failed" and isinstance(bad.error, InvalidArgumentError)


def test_a_cancelled_job_leaves_the_others(server: LiveServer, demo_pipe: Pipeline) -> None:
    kept, gone = job_of({"prompt": "a star"}), job_of({"prompt": "a cross", "seed": 5})
    kept.listen(lambda event: event.step == 1 and server.service.queue.cancel(gone))
    run_together(server, [gone, kept])
    assert gone.status == "cancelled" and not gone.images
    own = demo_pipe("a star", seed=1, **BASE)
    assert kept.status == "done" and kept.parameters == own.parameters


@pytest.mark.parametrize(
    "further",
    [
        {"num_inference_steps": 3},
        {"width": 128},
        {"scheduler": "euler"},
        {"scheduler_options": {"solver_order": 3}},
        {"guidance_scale": 3.0},
        {"negative_prompt": ""},
        {"clip_skip": 1},
        {"prompt_weights": True},
        {"safety": True},
        {"noise_device": "cuda"},
        {"prompt": "<lora:a:1> x"},
    ],
)
def test_jobs_that_differ_do_not_run_together(further: Mapping[str, Any]) -> None:
    plain, other = job_of({"prompt": "x"}), job_of({"prompt": "x", **further})
    assert plain.batch_key is not None and plain.batch_key != other.batch_key


@pytest.mark.parametrize(
    "further",
    [
        {"image": object()},
        {"mask_image": object()},
        {"controlnets": [object()]},
        {"t2i_adapters": [object()]},
        {"ip_adapters": [object()]},
        {"prompt_2": "y"},
        {"token_embeds": {"a": {"b": 1}}},
        {"prompt": "[a:b:0.5]", "prompt_style": "automatic1111"},
        {"prompt": "a AND b", "prompt_style": "automatic1111"},
        {"prompt": "word " * 100, "prompt_style": "comfyui"},
        {"prompt": '("a", "b").and()', "prompt_style": "compel"},
        {"prompt": "a b " * 40, "prompt_style": "compel"},
        {"prompt": "zxqj" * 30, "prompt_style": "compel"},
        {"negative_prompt": "(a, b:1.2)" * 15, "prompt_style": "comfyui"},
        {"prompt": "\u4f60\u597d" * 30, "prompt_style": "automatic1111"},
        {"loras": ["a"], "prompt_style": "automatic1111"},
        {"prompt": "<lora:a:1> x", "prompt_style": "automatic1111"},
    ],
)
def test_jobs_that_cannot_share_a_batch_run_alone(further: Mapping[str, Any]) -> None:
    assert job_of({"prompt": "x", **further}).batch_key is None


@pytest.mark.parametrize("style", ["automatic1111", "comfyui", "compel"])
def test_texts_of_one_row_share_a_batch_in_every_style(style: str) -> None:
    text = "a (red:1.2) circle on a white ground, very detailed, " * 2
    job = job_of({"prompt": text, "prompt_style": style})
    assert (
        job.batch_key is not None and job.batch_key == job_of({**job.request.arguments}).batch_key
    )
    assert batch_key(job.request, 1) is None  # the model is not open


def test_equal_loras_that_add_no_words_share_a_batch_in_every_style() -> None:
    def key(prompt: str, may_add: bool = False) -> object:
        arguments = {"seed": 1, **BASE, "prompt": prompt, "prompt_style": "automatic1111"}
        request = ImageRequest("demo", arguments)
        return batch_key(request, 1, tokenizers(), loras_may_add_words=may_add)

    assert key("a star <lora:a:1> <lora:b:0.5>") == key("<lora:a> x<lora: b :.5>") is not None
    assert key("a star <lora:a:1>", may_add=True) is None
    others = ("x", "<lora:a:0.5> x", "<lora:b:1> x", "<lora:a:1><lora:a:1> x", "<lora:a:x> x")
    assert key("<lora:a:1> x") not in map(key, others)
    assert key("<lora:a:1>" + "word " * 100) is None


def test_one_seed_for_several_images_runs_alone() -> None:
    assert job_of({"prompt": ["a", "b"]}, 2).batch_key is None
    assert job_of({"prompt": ["a", "b"], "seed": [1, 2]}, 2).batch_key is not None


def test_one_job_is_called_as_it_was_requested() -> None:
    job = job_of({"prompt": ["a", "b"], "num_images_per_prompt": 2}, 4)
    assert merged_arguments([job]) == dict(job.request.arguments)
