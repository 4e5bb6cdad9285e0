"""Field case N10: the telemetry of ONNX Runtime and OpenVINO is off unless the user turns it on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import os, sys
import numpy as np
from sdexport import open_session
with open_session(sys.argv[1], sys.argv[2]) as session:
    session.run({session.inputs[0].name: np.zeros((1, 4, 8, 8), np.float32)})
children = [p for p in os.listdir("/proc") if p.isdigit()
            and f"\\nPPid:\\t{os.getpid()}\\n" in open(f"/proc/{p}/status").read()]
print(len(children), "openvino_telemetry" in sys.modules)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_nothing_is_written_or_sent(package: Path, tmp_path: Path, backend: str) -> None:
    """A library that is used writes no file into the home folder, and starts no process."""
    pytest.importorskip(backend)
    graph = package / "vae_decoder" / "model.onnx"
    environment = {"HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    environment["SDEXPORT_CACHE"] = "off"  # our own folder
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(graph), backend],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert done.stdout.split() == ["0", "False"]
    assert not list(tmp_path.rglob("*"))


def test_choice_of_the_user_is_kept() -> None:
    """ORT_DISABLE_TELEMETRY=0, and an OpenVINO that was imported before."""
    code = (
        "import os, sys, types; os.environ['ORT_DISABLE_TELEMETRY'] = '0'\n"
        "sys.modules['openvino_telemetry'] = sender = types.ModuleType('openvino_telemetry')\n"
        "sys.modules['openvino'] = types.ModuleType('openvino')\n"
        "sys.modules['onnxruntime'] = types.ModuleType('onnxruntime')\n"
        "from sdexport.engines import telemetry\n"
        "telemetry.import_onnxruntime(); telemetry.import_openvino()\n"
        "print(os.environ['ORT_DISABLE_TELEMETRY'], sys.modules['openvino_telemetry'] is sender)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "True"]
