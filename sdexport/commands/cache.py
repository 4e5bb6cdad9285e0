"""sdexport cache."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import click

from sdexport.commands.output import echo
from sdexport.commands.shared_options import json_option, print_json
from sdexport.commands.verbosity import verbosity_options


@click.command()
@click.option("--clear", is_flag=True, help="Delete everything in it.")
@json_option
@verbosity_options
def cache(clear: bool, as_json: bool) -> None:
    """List what the user's cache folder holds, or clear it.

    It holds graphs that OpenVINO has compiled and ONNX Runtime optimised, of which the least
    recently used ones are deleted when they take more than SDEXPORT_CACHE_GB (24), and hashes of
    large files. All of it is made
    again when it is needed. SDEXPORT_CACHE names another folder; "off" turns caching off.
    """
    from sdexport.engines.cache import cache_contents

    if clear:
        freed = cache_contents.clear()
        if as_json:
            print_json({"freed": freed})
        else:
            echo(f"{_mb(freed)} freed")
        return
    found = cache_contents.contents()
    if as_json:
        print_json(asdict(found))
        return
    if found.folder is None:
        echo("caching is turned off (SDEXPORT_CACHE)")
        return
    echo(found.folder)
    if found.problem:
        echo(f"  not used: {found.problem}")
        return
    for graph in found.graphs:
        echo(_line(graph))
    echo(f"{_mb(found.size)}, of at most {_mb(found.limit)} for graphs")


def _line(graph: dict[str, Any]) -> str:
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(graph["used"]))
    start = f"  {graph['component'] or graph['file']:<16} {_mb(graph['size']):>11}  used {used}"
    if graph["problem"]:
        return f"{start}  {graph['problem']}"
    sizes = "; ".join(
        ", ".join(f"{name} {span.partition(':')[0]}" for name, span in profile.items())
        for profile in graph["profiles"]
    )
    built = " ".join(filter(None, (graph["library"], graph.get("precision"))))
    return f"{start}  {built}, {sizes or 'all sizes'}"


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
