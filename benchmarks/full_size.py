"""The real size: SD 1.5's architecture with seeded random weights, from checkpoint to picture.

    python -m benchmarks.full_size --tokenizer DIR [--work DIR] [--json FILE]

Builds the checkpoint, then exports, verifies and paints 256x256 in 2 steps, each in a process of
its own, and reports wall time and peak memory of each. Weights are random: real shapes, real cost,
no meaning in the picture.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

UNET = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
TEXT_ENCODER = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "projection_dim": 768,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
}
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
PACKAGES = ("sdexport", "torch", "diffusers", "transformers", "onnx", "onnxruntime", "numpy")


def build_checkpoint(folder: Path, tokenizer: Path, seed: int = 0) -> None:
    """Write a diffusers folder of SD 1.5's published configuration with random float32 weights."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    builders = {
        "text_encoder": lambda: CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER)),
        "unet": lambda: UNet2DConditionModel(**UNET),
        "vae": lambda: AutoencoderKL(**VAE),
    }
    for name, build in builders.items():
        torch.manual_seed(seed)
        build().save_pretrained(folder / name)
    for name, value in (("model_index", INDEX), ("scheduler/scheduler_config", SCHEDULER)):
        path = folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value), encoding="utf-8")
    (folder / "tokenizer").mkdir()
    for file in tokenizer.iterdir():
        (folder / "tokenizer" / file.name).write_bytes(file.read_bytes())


def measure(*arguments: object) -> dict[str, Any]:
    """Run `sdexport ...` in its own process; seconds, peak resident memory in GB, and its output.

    Raises: RuntimeError: the command failed.
    """
    command = [sys.executable, "-m", "sdexport", *map(str, arguments)]
    started = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"{' '.join(command)} failed: {errors.read()}{output}")
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "peak_gb": round(usage.ru_maxrss * 1024 / 1e9, 2),
        "output": output,
    }


def run(work: Path, tokenizer: Path) -> dict[str, Any]:
    checkpoint, package, picture = work / "checkpoint", work / "package", work / "picture.png"
    if not checkpoint.exists():
        build_checkpoint(checkpoint, tokenizer)
    prompt = "a photograph of an astronaut riding a horse"
    paint = ("--steps", 2, "--size", "256x256", "--seed", 0, "--json", "--force")
    stages = {
        "export": measure("export", checkpoint, package, "--force"),
        "verify": measure("verify", package, "--json"),
        "generate": measure("generate", package, prompt, "-o", picture, *paint),
    }
    checks = json.loads(stages["verify"].pop("output"))
    painted = json.loads(stages["generate"].pop("output"))["images"][0]["seconds"]
    stages["export"].pop("output")
    size = sum(f.stat().st_size for f in package.rglob("*") if f.is_file())
    return {
        "model": "SD 1.5 architecture, seeded random weights, fp32",
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count()},
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "package_gb": round(size / 1e9, 2),
        "external_data_gb": round((package / "unet" / "model.onnx_data").stat().st_size / 1e9, 2),
        "stages": stages,
        "generate_seconds": painted,
        "verified": checks["passed"],
        "checks": [c for c in checks["checks"] if c["output"] != "files"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.full_size")
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="folder with CLIP's own files"
    )
    parser.add_argument("--work", type=Path, help="keeps checkpoint and package; 9 GB")
    parser.add_argument("--json", type=Path, help="also write the report here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        report = run(args.work or Path(scratch), args.tokenizer)
    text = json.dumps(report, indent=2) + "\n"
    print(text, end="")
    if args.json:
        args.json.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
