"""The message of every error is one line without control characters."""

from __future__ import annotations

import pytest

from sdexport.engines import errors
from sdexport.engines.messages import one_line

CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, errors.SDExportError)
]


@pytest.mark.parametrize("error", CLASSES)
def test_message_is_one_line_without_control_characters(error: type[errors.SDExportError]) -> None:
    raised = error("two\nlines \x1b[31m\u202e 日本")
    assert str(raised) == "two lines \\x1b[31m\\u202e 日本"
    assert raised.args == ("two\nlines \x1b[31m\u202e 日本",)
    assert one_line(raised) == str(raised)


def test_text_of_another_error_is_escaped() -> None:
    assert one_line(ValueError("a\x9b2J\tb\r\nc")) == "a\\x9b2J b c"
    assert one_line(KeyError()) == "KeyError"
