"""The arguments of the application for Ray Serve, in the forms of its command line and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sdexport.engines.errors import InvalidArgumentError
from sdexport.server.ray_arguments import RayArguments, ray_arguments

PACKAGE = {"package": "demo=/models/demo"}


def test_packages_have_names_in_every_form() -> None:
    expected = {"demo": Path("/models/demo"), "sdxl": Path("/models/sdxl")}
    for form in (
        "demo=/models/demo,/models/sdxl",
        ["/models/demo", "sdxl=/models/sdxl"],
        {"demo": "/models/demo", "sdxl": "/models/sdxl"},
    ):
        assert ray_arguments({"package": form}).package == expected
    assert list(ray_arguments({"package": "b=/x,a=/y"}).package) == ["b", "a"]


def test_texts_of_the_command_line_are_numbers_and_lists(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("k" * 20)
    made = ray_arguments(
        {
            **PACKAGE,
            "max_queue": "7",
            "memory_limit": "1.5",
            "warm_up": "true",
            "batch_window_ms": "5",
            "allowed_host": "a.example,b.example",
            "options": "threads=3",
            "backend": "openvino,precision=bf16",
            "api_key_file": str(keys),
        }
    )
    settings = made.settings
    assert (settings.max_queue, settings.memory_limit, settings.warm_up) == (7, 1_500_000_000, True)
    assert 0 < settings.batch_window < 0.02  # seconds
    assert settings.allowed_hosts == ("a.example", "b.example")
    assert settings.api_keys == ("k" * 20,) and settings.needs_key_beyond_loopback
    options = made.load_options()
    assert options["threads"] == 3 and options["backend"] == "openvino,precision=bf16"


def test_a_replica_has_as_many_threads_as_processors() -> None:
    assert ray_arguments({**PACKAGE, "num_cpus": 2}).load_options()["threads"] == 2
    assert ray_arguments({**PACKAGE, "num_cpus": 0.5}).load_options()["threads"] == 1
    assert "threads" not in ray_arguments({**PACKAGE, "num_cpus": 0}).load_options()
    both = {"*": "onnxruntime-cuda", "vae_decoder": "tensorrt"}
    assert ray_arguments({**PACKAGE, "backend": both}).load_options()["threads"] == 1
    assert "threads" not in ray_arguments({**PACKAGE, "backend": "tensorrt"}).load_options()


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({}, "package"),
        ({"package": {}}, "package"),
        ({"package": []}, "package"),
        ({"package": ""}, "package"),
        ({"package": 3}, "package"),
        ({"package": "a=/x,a=/y"}, "two are called a"),
        ({"package": "=/x"}, "NAME=PACKAGE"),
        ({**PACKAGE, "packages": "x"}, "packages"),
        ({**PACKAGE, "max_queue": 0}, "max_queue"),
        ({**PACKAGE, "max_queue": "many"}, "max_queue"),
        ({**PACKAGE, "max_replicas": 10**9}, "max_replicas"),
        ({**PACKAGE, "num_gpus": -1}, "num_gpus"),
        ({**PACKAGE, "num_cpus": float("nan")}, "num_cpus"),
        ({**PACKAGE, "timeout": float("inf")}, "timeout"),
        ({**PACKAGE, "min_replicas": 3, "max_replicas": 2}, "min_replicas (3)"),
        ({**PACKAGE, "backend": "cuda"}, "cuda"),
        ({**PACKAGE, "backend": {"unet": 3}}, "backend"),
        ({**PACKAGE, "options": "threads"}, "threads"),
        ({**PACKAGE, "api_keys": ["x" * 20]}, "api_keys"),
    ],
)
def test_wrong_arguments_are_named_in_one_line(given: dict[str, Any], part: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        ray_arguments(given)
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_keys_are_read_where_the_server_runs(tmp_path: Path) -> None:
    """The key itself is in no argument, which Ray shows in its dashboard."""
    made = ray_arguments({**PACKAGE, "api_key_file": str(tmp_path / "none")})
    with pytest.raises(FileNotFoundError):
        _ = made.settings


def test_paths_are_absolute_for_replicas_in_other_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = ray_arguments({"package": "demo=package", "lora_dir": "loras"})
    moved = made.model_copy(update=made.absolute())
    assert moved.package == {"demo": tmp_path / "package"}
    assert moved.lora_dir == tmp_path / "loras" and moved.engine_dir is None


def test_limits_are_those_of_the_command() -> None:
    """The same default for each option of `sdexport serve` that both have."""
    from sdexport.commands.serve import serve

    fields = RayArguments.model_fields
    renamed = {"allowed_hosts": "allowed_host", "cors_origins": "cors_origin", "vae_tile": "tile"}
    compared = 0
    for option in serve.params:
        field = fields.get(renamed.get(str(option.name), str(option.name)))
        default = option.default
        if field is not None and isinstance(default, int | float):
            assert field.default == default, option.name
            compared += 1
    assert compared >= 9
