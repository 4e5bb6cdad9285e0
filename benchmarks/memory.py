"""Peak memory of one image in a fresh process, compared with other libraries.

    python -m benchmarks.memory --work DIR [--model sd15] [--size 512] [--contender NAME]...

Each contender opens the model and generates an image in one step, alone on the machine, in a new
process for each size. More steps need no more memory. Linux only: figures are VmHWM.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import arguments
from benchmarks.contenders import Contender, start
from benchmarks.latency import cases_of
from benchmarks.models import Model
from sdexport.bench.measure import machine
from sdexport.engines.errors import WorkerError


def run(model: Model, size: int, contenders: Sequence[Contender], work: Path) -> dict[str, Any]:
    report: dict[str, Any] = {
        "model": model.name,
        "weights_gb": round(model.weights_gb, 3),
        "size": [size, size],
        "num_inference_steps": 1,
        "machine": machine(),
        "rows": {},
    }
    with tempfile.TemporaryDirectory() as scratch:
        cases = cases_of(model, size, Path(scratch), components=not model.whole_images)
        for contender in contenders:
            print(f"{model.name} {size}: {contender.name}", flush=True)
            report["rows"][contender.name] = _one(contender, model, work, cases)
    return report


def _one(contender: Contender, model: Model, work: Path, cases: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"precision": contender.precision}
    try:
        worker, row["opened"] = start(contender, model, work)
        with worker:
            for case, request in cases.items():
                if request["do"] == "image":
                    changes = {"num_inference_steps": 1, "scheduler": contender.scheduler}
                    request = request | {"arguments": request["arguments"] | changes}
                row[case] = worker.request(**request)
    except WorkerError as error:
        row["error"] = str(error)
    return row


def main() -> None:
    args = arguments.parser("memory", __doc__).parse_args()
    for model, size, contenders in arguments.selected(args, memory=True):
        report = run(model, size, contenders, args.work)
        arguments.save(report, f"memory-{model.name}-{size}", args)


if __name__ == "__main__":
    main()
