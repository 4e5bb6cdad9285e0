"""Option values of several parts: a size in pixels, an interval, the area to inpaint."""

from __future__ import annotations

from typing import Any

import click

DEFAULT_PADDING = 32
"""Pixels around a masked area, as in AUTOMATIC1111."""


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


class InpaintAreaType(click.ParamType[int | None]):
    """whole, or masked:PADDING in pixels; the value is the padding, None for the whole image."""

    name = "whole|masked[:PADDING]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        area, colon, padding = str(value).lower().partition(":")
        if area == "whole" and not colon:
            return None
        padding = padding if colon else str(DEFAULT_PADDING)
        if area != "masked" or not (padding.isdecimal() and len(padding) < 20):
            self.fail(f"{value!r} is not an area; expected whole, masked or masked:64", param, ctx)
        return int(padding)
