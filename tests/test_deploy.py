"""The files in deploy/: they can be read, and name what exists."""

from __future__ import annotations

import re
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from sdexport.server.ray_arguments import RayArguments, ray_arguments

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINNED = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
)
DOCKERFILES = sorted(DEPLOY.glob("Dockerfile*"))
CONFIGURATIONS = ["ray-serve.yaml", "rayservice.yaml", "docs"]


def read_yaml(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


def configuration(name: str) -> Any:
    """A configuration of Ray Serve: of its own file, in KubeRay's, or in the documentation."""
    if name == "docs":
        page = (ROOT / "docs" / "ray.md").read_text(encoding="utf-8")
        (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
        return yaml.safe_load(block)
    found = read_yaml(name)
    return yaml.safe_load(found["spec"]["serveConfigV2"]) if name == "rayservice.yaml" else found


def instructions(path: Path) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile."""
    text = re.sub(r"\\\n\s*", "", path.read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split()[0], line.partition(" ")[2]) for line in lines]


def stages(path: Path) -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """Stage -> what it begins from, and its instructions."""
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    name = ""
    for keyword, rest in instructions(path):
        if keyword == "FROM":
            source, _, name = rest.split()
            found[name] = (source, [])
        elif name:
            found[name][1].append((keyword, rest))
    return found


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_are_small_and_not_of_root(path: Path) -> None:
    found = stages(path)
    assert list(found) == ["build", "build-ray", "base", "ray", "server"]  # server is the default
    assert found["base"][0] == "python:${PYTHON}-slim-bookworm"
    for name in ("server", "ray"):
        source, own = found[name]
        assert source == "base" and ("USER", "10001:10001") in own
        (copied,) = [rest for keyword, rest in own if keyword == "COPY"]
        assert copied.startswith("--from=build")
    python = dict(instructions(path)).get("ARG", "")
    versions = [rest for keyword, rest in instructions(path) if rest.startswith("PYTHON=")]
    assert (
        f"Programming Language :: Python :: {versions[0].removeprefix('PYTHON=')}"
        in (PROJECT["classifiers"])
    )
    assert "key" not in python.lower()


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_have_extras_and_versions_that_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    lists = re.findall(r'"\.\[([\w,-]+)\]"', text) + re.findall(r"ARG EXTRAS=(\S+)", text)
    names = {name for each in lists for name in each.split(",")}
    assert {"serve", "ray"} <= names <= EXTRAS.keys()
    for rest in (rest for keyword, rest in instructions(path) if "pip install" in rest):
        assert "--constraint constraints.txt" in rest and "--no-cache-dir" in rest
    packages = {re.split(r"[\[<>=]", item)[0] for name in names for item in EXTRAS[name]}
    assert not {"onnxruntime", "onnxruntime-gpu"} <= packages
    for name, version in re.findall(r'"([\w-]+)==([\w.]+)"', text):
        assert PINNED[name.removesuffix("-gpu")] == version


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_copy_what_their_context_has(path: Path) -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        name
        for keyword, rest in instructions(path)
        if keyword == "COPY" and not rest.startswith("--from")
        for name in rest.split()[:-1]
    }
    assert "*" in lines and copied <= kept == {name for name in kept if (ROOT / name).exists()}


def test_compose_keeps_the_server_in_bounds() -> None:
    found = read_yaml("compose.yaml")
    (server,) = found["services"].values()
    assert server["read_only"] is True and server["cap_drop"] == ["ALL"]
    assert server["user"] == "10001:10001" and "no-new-privileges:true" in server["security_opt"]
    assert server["tmpfs"][0].startswith("/tmp:") and "healthcheck" in server
    assert all(port.startswith("127.0.0.1:") for port in server["ports"])
    (secret,) = server["secrets"]
    assert secret in found["secrets"]
    assert server["build"]["target"] in stages(DEPLOY / Path(server["build"]["dockerfile"]).name)
    compile(server["healthcheck"]["test"][3], "healthcheck", "exec")
    grace = next(a for a in server["command"] if a.startswith("--grace"))
    assert int(grace.partition("=")[2]) < int(server["stop_grace_period"].rstrip("s"))


def test_compose_calls_the_command_as_it_is() -> None:
    from sdexport.commands.serve import serve

    command = read_yaml("compose.yaml")["services"]["sdexport"]["command"]
    options = {name for parameter in serve.params for name in parameter.opts}
    assert command[0] == "serve"
    assert {part.partition("=")[0] for part in command if part.startswith("--")} <= options
    secret = next(part for part in command if part.startswith("--api-key-file"))
    assert secret.rpartition("/")[2] in read_yaml("compose.yaml")["secrets"]


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_configurations_of_ray_serve(name: str) -> None:
    found = configuration(name)
    (application,) = found["applications"]
    module, _, attribute = application["import_path"].partition(":")
    assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file() and attribute == "app"
    made = ray_arguments(application["args"])
    assert all(path.is_absolute() for path in made.package.values())
    if found["http_options"]["host"] != "127.0.0.1":
        assert made.api_key_file is not None  # others can reach it


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_ray_serve_takes_its_configurations(name: str) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'sdexport[ray]'")
    from ray.serve.schema import ServeDeploySchema

    found = ServeDeploySchema.model_validate(configuration(name))
    (application,) = found.applications
    module, _, attribute = application.import_path.partition(":")
    built = getattr(import_module(module), attribute)(application.args)
    assert type(built).__name__ == "Application"


def test_rayservice_agrees_with_itself() -> None:
    found = read_yaml("rayservice.yaml")
    assert (found["apiVersion"], found["kind"]) == ("ray.io/v1", "RayService")
    cluster = found["spec"]["rayClusterConfig"]
    assert cluster["rayVersion"] == PINNED["ray"]
    (group,) = cluster["workerGroupSpecs"]
    (application,) = configuration("rayservice.yaml")["applications"]
    made: RayArguments = ray_arguments(application["args"])
    assert group["minReplicas"] <= made.min_replicas and made.max_replicas <= group["maxReplicas"]
    for spec in (cluster["headGroupSpec"], group):
        pod = spec["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert set(mounts.values()) <= {volume["name"] for volume in pod["volumes"]}
        assert str(made.api_key_file.parent) in mounts  # type: ignore[union-attr]
        assert all(str(path.parent) in mounts for path in made.package.values())
    assert cluster["authOptions"]["mode"] == "token"  # or Ray runs code for whoever reaches it
    pod = group["template"]["spec"]
    limits = pod["containers"][0]["resources"]["limits"]
    assert int(limits["nvidia.com/gpu"]) >= made.num_gpus and int(limits["cpu"]) >= made.num_cpus
    assert pod["terminationGracePeriodSeconds"] >= made.graceful_shutdown_timeout_s


def test_neither_git_nor_the_sdist_takes_the_key_and_the_models() -> None:
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    lines = (ROOT / "MANIFEST.in").read_text(encoding="utf-8").splitlines()
    left_out = lines[lines.index("graft deploy") :]  # a later line counts
    compose = read_yaml("compose.yaml")
    (volume,) = compose["services"]["sdexport"]["volumes"]
    for value, command in (
        (volume["source"], "prune"),
        (compose["secrets"]["sdexport_api_key"]["file"], "exclude"),
    ):
        path = "deploy/" + value.rpartition(":-./")[2].rstrip("}")
        assert path in (DEPLOY / "README.md").read_text(encoding="utf-8")
        assert f"{command} {path}" in left_out
        assert {f"/{path}", f"/{path}/"} & set(ignored)


def test_files_hold_no_secret() -> None:
    own = [path for path in DEPLOY.iterdir() if path.name not in ("models", "api-key.txt")]
    for path in (*own, ROOT / ".dockerignore"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\b[A-Za-z0-9+/_-]{40,}={0,2}\b", text), path.name
