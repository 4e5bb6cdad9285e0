"""Which jobs that ended are forgotten: the oldest, and those of the clients that have most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sdexport.server.jobs import DONE, Job
from sdexport.server.server_settings import ServerSettings


def jobs_to_forget(jobs: Sequence[Job], now: float, settings: ServerSettings) -> list[Job]:
    """The jobs that are not kept any more.

    Those that are done are counted apart from the others, so that jobs without images push out no
    images. Where there are too many, the client with most of them loses one: the oldest whose
    images were fetched, else its oldest. The job that ended last is kept.

    Args:
      now: time.monotonic().
    """
    over = sorted((job for job in jobs if job.is_over and job.ended is not None), key=_end)
    kept = [job for job in over if now - _end(job) <= settings.keep_seconds]
    done = [job for job in kept if job.status == DONE]
    others = [job for job in kept if job.status != DONE]
    forgotten = [job for job in over if now - _end(job) > settings.keep_seconds]
    forgotten += _too_many(done, dict.fromkeys(done, 1), settings.keep_jobs)
    forgotten += _too_many(others, dict.fromkeys(others, 1), settings.keep_jobs)
    rest = [job for job in done if job not in forgotten]
    return forgotten + _too_many(rest, {job: job.bytes for job in rest}, settings.keep_bytes)


def _too_many(jobs: Sequence[Job], sizes: dict[Job, int], most: int) -> list[Job]:
    """The jobs without which the sum of the sizes is at most `most`.

    Args:
      jobs: in the order of their ends.
    """
    total = sum(sizes.values())
    if total <= most:
        return []
    of_clients: Counter[str] = Counter()
    for job in jobs:
        of_clients[job.client] += sizes[job]
    left = sorted(jobs[:-1], key=lambda job: (bool(job.unfetched), _end(job)))
    found: list[Job] = []
    while total > most and left:
        client = max((job.client for job in left), key=lambda name: of_clients[name])
        job = next(each for each in left if each.client == client)
        left.remove(job)
        found.append(job)
        of_clients[client] -= sizes[job]
        total -= sizes[job]
    return found


def _end(job: Job) -> float:
    return job.ended or 0.0
