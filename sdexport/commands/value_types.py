"""Option values of two numbers: a size in pixels, and an interval."""

from __future__ import annotations

from typing import Any

import click


class SizeType(click.ParamType[tuple[int, int]]):
    """WIDTHxHEIGHT in pixels."""

    name = "WxH"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        width, _, height = str(value).lower().partition("x")
        if not (width.isdecimal() and height.isdecimal() and len(value) < 20):
            self.fail(f"{value!r} is not a size; expected WIDTHxHEIGHT such as 512x768", param, ctx)
        return int(width), int(height)


class IntervalType(click.ParamType[tuple[float, float]]):
    """START:END, two numbers."""

    name = "START:END"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, float]:
        try:
            start, end = map(float, str(value).split(":"))
        except ValueError:
            self.fail(
                f"{value!r} is not an interval; expected two numbers such as 0.1:0.8", param, ctx
            )
        return start, end
