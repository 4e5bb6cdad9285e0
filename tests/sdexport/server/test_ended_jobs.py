"""Jobs that ended are kept for a while, within limits that no client uses up for others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from PIL import Image

from sdexport.engines.errors import InvalidArgumentError
from sdexport.server.ended_jobs import jobs_to_forget
from sdexport.server.image_request import ImageRequest
from sdexport.server.jobs import Job
from sdexport.server.server_settings import ServerSettings

SIDE = 10
IMAGE = SIDE * SIDE * 3


def ended(client: str, time: float, *, fetched: bool = False, failed: bool = False) -> Job:
    job = Job(ImageRequest("demo", {}), 1, client=client)
    if failed:
        job.fail(InvalidArgumentError("bad"))
    else:
        job.succeed([Image.new("RGB", (SIDE, SIDE))], [], {})
        job.unfetched = set() if fetched else {0}
    job.ended = time
    return job


def kept(jobs: Sequence[Job], now: float = 100.0, **settings: Any) -> list[Job]:
    forgotten = jobs_to_forget(jobs, now, ServerSettings(**settings))
    assert len(forgotten) == len(set(forgotten))
    return [job for job in jobs if job not in forgotten]


@pytest.mark.parametrize("limit", [{"keep_jobs": 4}, {"keep_bytes": 4 * IMAGE}])
def test_the_client_with_most_jobs_loses_its_oldest(limit: dict[str, Any]) -> None:
    quiet = [ended("quiet", 1), ended("quiet", 2)]
    busy = [ended("busy", time) for time in range(10, 30)]
    assert kept([*quiet, *busy], **limit) == [*quiet, *busy[-2:]]
    assert kept(busy, **limit) == busy[-4:]


def test_images_that_were_fetched_go_first() -> None:
    jobs = [ended("a", time, fetched=time in (3, 4)) for time in range(6)]
    assert kept(jobs, keep_jobs=4) == [jobs[0], jobs[1], jobs[2], jobs[5]]
    assert kept(jobs, keep_jobs=3) == [jobs[1], jobs[2], jobs[5]]


def test_the_last_one_is_kept_however_large() -> None:
    jobs = [ended("a", 1), ended("b", 2)]
    assert kept(jobs, keep_bytes=1) == jobs[1:]
    assert kept(jobs, keep_jobs=0) == jobs[1:]


def test_old_ones_go_and_jobs_without_images_push_out_none() -> None:
    done = [ended("a", 50), ended("a", 95)]
    others = [ended("a", 96 + i / 10, failed=True) for i in range(5)]
    assert kept([*done, *others], keep_seconds=10, keep_jobs=2) == [done[1], *others[-2:]]
    running = Job(ImageRequest("demo", {}), 1)
    assert kept([running], now=1e9) == [running]
