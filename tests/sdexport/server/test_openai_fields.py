"""Fields and forms of OpenAI's API."""

from __future__ import annotations

from typing import Any

import pytest

from sdexport.engines.errors import InvalidArgumentError
from sdexport.server.openai_errors import error_body
from sdexport.server.openai_fields import checked_fields, form_values


def test_form_values_read_numbers_lists_and_objects() -> None:
    found = form_values(
        [
            ("prompt", "3"),
            ("negative_prompt", "true"),
            ("n", "2"),
            ("stream", "true"),
            ("strength", "0.5"),
            ("seed[]", "1"),
            ("seed[]", "2"),
            ("scheduler", "euler"),
            ("scheduler_options[s_churn]", "4"),
            ("loras", '[{"name": "style", "scale": 0.5}]'),
        ]
    )
    assert found == {
        "prompt": "3",
        "negative_prompt": "true",
        "n": 2,
        "stream": True,
        "strength": 0.5,
        "seed": [1, 2],
        "scheduler": "euler",
        "scheduler_options": {"s_churn": 4},
        "loras": [{"name": "style", "scale": 0.5}],
    }


@pytest.mark.parametrize(
    "items",
    [
        *([("n", "1"), ("n", "2")], [("seed", "1"), ("seed[]", "2")], [("a[b]", "1"), ("a[]", "")]),
        *([("a[b]", "1"), ("a[b]", "1")], [("a[b]", "1"), ("a", "1")]),
    ],
)
def test_form_values_reject_names_that_are_there_twice(items: list[tuple[str, str]]) -> None:
    with pytest.raises(InvalidArgumentError, match="it is there"):
        form_values(items)


@pytest.mark.parametrize("text", ["[" * 5000, "9" * 5000, "NaN", "\x00", "{'a'}", '"\\ud800"'])
def test_form_values_keep_what_is_no_json_as_text(text: str) -> None:
    assert form_values([("eta", text)])["eta"] == text


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": None},
        {"prompt": 3},
        {"prompt": "x", "n": True},
        {"prompt": "x", "n": 1.5},
        {"prompt": "x", "n": [1]},
        {"prompt": "x", "stream": 1},
        {"prompt": "x", "stream": "true"},
        {"prompt": "x", "size": [8, 8]},
        {"prompt": "x", "size": "0512x512 "},
        {"prompt": "x", "size": "512x512", "width": 512},
        {"prompt": "x", "quality": {}},
        {"prompt": "x", "background": ["auto"]},
        {"prompt": "x", "response_format": ["url"]},
        {"prompt": "x", "response_format": "url", "stream": True},
        {"prompt": "x", "output_format": "PNG"},
        {"prompt": "x", "output_format": "jpeg", "output_compression": 101},
        {"prompt": "x", "user": 1},
        {"prompt": "x", "model": ["demo"]},
        {"prompt": "x", "output_type": "np"},
    ],
)
def test_checked_fields_rejects_other_types_and_values(body: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        checked_fields(body)


def test_checked_fields_leaves_out_what_is_null() -> None:
    fields = checked_fields({"prompt": "x", "n": None, "seed": None, "style": None, "size": "auto"})
    assert fields.arguments == {"prompt": "x", "num_images_per_prompt": 1}


def test_error_body_names_the_field() -> None:
    assert error_body(400, "invalid_request", "n: too many")["error"]["param"] == "n"
    assert error_body(400, "invalid_request", "nothing")["error"]["param"] is None
    assert error_body(507, "out_of_memory", "no memory")["error"]["type"] == "server_error"
