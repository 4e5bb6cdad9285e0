"""Shared command-line arguments of the benchmarks, and where their reports go."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import reports
from benchmarks.contenders import CONTENDERS, Contender, chosen
from benchmarks.models import KINDS, Model, made

RESULTS = Path(__file__).parent / "results"


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description=description,
        prog=f"python -m benchmarks.{name}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common(result)
    result.add_argument("--model", choices=KINDS, default="embedded")
    result.add_argument(
        "--size",
        type=int,
        action="append",
        help="width and height in pixels; default all sizes of the model",
    )
    return result


def common(result: argparse.ArgumentParser) -> None:
    result.add_argument(
        "--work", type=Path, required=True, help="folder for environments, checkpoints and packages"
    )
    result.add_argument("--results", type=Path, default=RESULTS, help="folder for reports")
    result.add_argument(
        "--tokenizer",
        type=Path,
        default=os.environ.get("CLIP_TOKENIZER"),
        help="folder with CLIP's own files; default $CLIP_TOKENIZER, or the demo model's",
    )
    result.add_argument(
        "--contender",
        action="append",
        default=[],
        help=f"name or beginning of a name, repeatable; one of {', '.join(CONTENDERS)}",
    )
    result.add_argument("--slow", action="store_true", help="also contenders with torch.compile")
    result.add_argument("--memory", type=float, help="GB for a group; default 85%% of free memory")


def selected(
    args: argparse.Namespace, *, memory: bool = False
) -> Iterator[tuple[Model, int, list[Contender]]]:
    """Model, size and contenders of each requested run."""
    args.work = args.work.resolve()
    contenders = chosen(args.contender, slow=args.slow, memory=memory)
    model = made(args.model, args.work, args.tokenizer and Path(args.tokenizer))
    for size in args.size or model.sizes:
        yield model, size, contenders


def save(report: dict[str, Any], name: str, args: argparse.Namespace) -> None:
    """Write a report to the results folder, and print its path."""
    path = args.results / f"{name}.json"
    reports.save(report, path)
    print(path)
