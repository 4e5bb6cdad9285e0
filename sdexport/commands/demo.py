"""sdexport demo."""

from __future__ import annotations

from pathlib import Path

import click

from sdexport.commands.export import run_export
from sdexport.commands.output import echo
from sdexport.commands.progress import progress
from sdexport.commands.shared_options import FOLDER, json_option, print_json, require_passed
from sdexport.commands.verbosity import verbosity_options

CHECKS = 9
"""Progress reports of the verifications: hashes, four components and an image; hashes and the two
components of the ControlNet."""


@click.command()
@click.argument("folder", metavar="[FOLDER]", type=FOLDER, default="sdexport-demo")
@click.option(
    "--from-checkpoint",
    is_flag=True,
    help="Export the demo model's checkpoint first, as for any other model; needs PyTorch, and "
    "a checkout of the repository.",
)
@click.option("--force", is_flag=True, help="Replace an existing demo.")
@json_option
@verbosity_options
def demo(folder: Path, from_checkpoint: bool, force: bool, as_json: bool) -> None:
    """Try sdexport with a small demo model.

    The demo model is a Stable Diffusion model of coloured shapes. Its package is installed with
    sdexport, and so are a ControlNet on outlines and two LoRAs. They are copied to FOLDER/package,
    FOLDER/controlnet and FOLDER/loras, verified, and generate FOLDER/sheet.png: images of twelve
    prompts, with LoRAs, with the ControlNet, and with both. FOLDER is sdexport-demo by default.
    """
    from sdexport.demo_model import PACKAGE_DIR
    from sdexport.demo_model.demo_run import CALLS, STEPS, checkpoint, copy_package, run

    def make_package(destination: Path, force: bool) -> None:
        copy_package(PACKAGE_DIR, destination, force=force)

    if from_checkpoint:
        source = checkpoint()

        def make_package(destination: Path, force: bool) -> None:
            run_export(source, destination, lora_inputs=True, controlnet_inputs=True, force=force)

    with progress(CHECKS + CALLS * STEPS, "demo") as shown:
        report = run(folder, make_package, force=force, progress=shown.begin)
    if as_json:
        print_json(report)
    else:
        echo(*report["table"].split("\n"))
        for stage, seconds in report["seconds"].items():
            echo(f"{stage:<9}{seconds:7.1f} s")
        for what in ("package", "controlnet", "loras", "sheet"):
            echo(f"{what + ':':<12}{report[what]}")
    require_passed(report["passed"])
