"""Images of many sizes in one process, and its resident memory after each of them.

    python -m benchmarks.soak_images PACKAGE JSON

JSON is an object: "backends" and "options" of load_pipeline, "call" (arguments of the pipeline),
"images" (how many), "sizes" (different ones at most) and "largest" (pixels). Prints JSON as well.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdexport import load_pipeline

SMALLEST, STEP = 64, 8


def resident_mb() -> float:
    """Resident memory of this process; Linux alone."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 2**20


def run(package: str, what: Mapping[str, Any]) -> dict[str, Any]:
    """Resident memory in MB after each image, and the number of sizes."""
    sides = range(SMALLEST, what["largest"] + 1, STEP)
    sizes = [(height, width) for height in sides for width in sides]
    rng = random.Random(0)
    rng.shuffle(sizes)
    sizes = sizes[: what["sizes"]]
    found = []
    with load_pipeline(package, what["backends"], threads=1, **what["options"]) as pipe:
        for number in range(what["images"]):
            height, width = sizes[number] if number < len(sizes) else rng.choice(sizes)
            pipe(
                "a star",
                height=height,
                width=width,
                num_inference_steps=2,
                seed=number,
                num_images_per_prompt=rng.randint(1, 2),
                **what["call"],
            )
            found.append(resident_mb())
    return {"sizes": len(sizes), "resident_mb": found}


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], json.loads(sys.argv[2]))))
