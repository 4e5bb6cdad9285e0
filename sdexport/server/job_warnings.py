"""What the library warns of while a job runs, for the client whose job it is.

A batch is one call: a warning about a text may quote the prompt of another client. So those are
found again for each job, by what reads its texts alone.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from sdexport.runtime.pipeline import Pipeline
from sdexport.runtime.text.prompt_styles import PLAIN, style_name, warn_about_unread_syntax
from sdexport.server.jobs import Job
from sdexport.server.request_checks import texts_of

MOST = 20
"""Warnings of a job that are kept."""
_LIBRARY = "sdexport.runtime"
_TEXTS = f"{_LIBRARY}.text"


class _Kept(logging.Handler):
    """Keeps the warnings of one thread."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._thread = threading.get_ident()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread and len(self.records) < MOST:
            self.records.append(record)


@contextmanager
def kept_warnings() -> Iterator[list[logging.LogRecord]]:
    """Keep the library's warnings of this thread while a block runs; they are logged as well."""
    handler, logger = _Kept(), logging.getLogger(_LIBRARY)
    logger.addHandler(handler)
    try:
        yield handler.records
    finally:
        logger.removeHandler(handler)


def warnings_of(
    job: Job, records: Iterable[logging.LogRecord], pipeline: Pipeline, *, is_alone: bool
) -> list[str]:
    """The warnings that are about a job.

    Args:
      records: of the whole batch. is_alone: whether the job was the whole batch.
    """
    found = list(records)
    if not is_alone and any(record.name.startswith(_TEXTS) for record in found):
        found = [record for record in found if not record.name.startswith(_TEXTS)]
        found += _about_texts(job, pipeline)
    return list(dict.fromkeys(record.getMessage() for record in found))


def _about_texts(job: Job, pipeline: Pipeline) -> list[logging.LogRecord]:
    """The warnings about the prompts of a job that shared its batch."""
    arguments = job.request.arguments
    style = style_name(
        arguments.get("prompt_style"), weights=bool(arguments.get("prompt_weights", False))
    )
    texts = [*texts_of(arguments, "prompt"), *texts_of(arguments, "negative_prompt")]
    with kept_warnings() as records:
        warn_about_unread_syntax(texts, style)
        if style == PLAIN:
            for tokenizer in pipeline.text_encoders.tokenizers.values():
                tokenizer(texts)
    return records
