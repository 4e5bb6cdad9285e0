"""`sdexport generate` twice in processes of their own, the second after graphs were stored."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from sdexport.demo_model import PACKAGE_DIR
from sdexport.engines.cache import user_cache


def check_two_starts(folder: Path, stored: str, *options: str) -> None:
    """The first start stores three graphs in the cache, which the second uses for the same image.

    Args:
      folder: for the cache and images. stored: pattern of the graphs' sidecars in the cache.
    """
    cache, outputs = folder / "cache", [folder / "first.png", folder / "second.png"]
    sidecars, started = [], 0.0
    for output in outputs:
        command = [sys.executable, "-m", "sdexport", "generate", str(PACKAGE_DIR), "a red circle"]
        command += ["-o", str(output), "--steps", "1", "--seed", "0", "--quiet", *options]
        started = time.time()
        subprocess.run(command, check=True, env=os.environ | {user_cache.VARIABLE: str(cache)})
        while len(sidecars := list(cache.rglob(stored))) < 3:
            assert time.time() < started + 300
            time.sleep(0.05)
    assert all(sidecar.stat().st_mtime >= started for sidecar in sidecars)  # they were used
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
