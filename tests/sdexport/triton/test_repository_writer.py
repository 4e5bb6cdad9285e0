"""sdexport triton: configurations, files, what is rejected, and that nothing is half-written."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sdexport.cli import main
from sdexport.demo_model import PACKAGE_DIR
from sdexport.engines.errors import InvalidArgumentError, PackageError
from sdexport.engines.session import TensorSpec
from sdexport.runtime.packages.manifest import MANIFEST
from sdexport.runtime.packages.package import Package
from sdexport.triton import repository_writer
from sdexport.triton.graph_models import GraphModel, has_batch, model_files, takes_adapters
from sdexport.triton.model_config import ConfigTensor, ModelConfig, quoted
from sdexport.triton.pipeline_tensors import INPUTS, OUTPUTS
from sdexport.triton.repository_record import RECORD, RepositoryRecord
from sdexport.triton.repository_writer import RepositoryOptions, write_repository
from tests.helpers.triton_server import TritonServer, data_type, read_config

DEMO = RepositoryOptions(name="demo")


def files_of(folder: Path) -> Iterator[str]:
    return (p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_every_graph_is_a_model(server: TritonServer, repository: Path) -> None:
    package = Package.load(PACKAGE_DIR, verify=False)
    graphs = [graph for graph in package.graphs if not takes_adapters(graph)]
    names = {f"demo_{graph.replace('.', '_')}": graph for graph in graphs}
    assert set(server.configs) == {"demo", *names}
    for name, graph in names.items():
        config, specs = server.configs[name], package.graph_inputs(graph)
        assert config.backend == "onnxruntime"
        assert [each.name for each in config.input] == [spec.name for spec in specs]
        batched = graph != "unet"
        assert config.max_batch_size == (4 if batched else 0)
        assert config.HasField("dynamic_batching") == batched
        assert [group.count for group in config.instance_group] == [1]
        for field, spec in zip(config.input, specs, strict=True):
            sizes = [size if isinstance(size, int) else -1 for size in spec.shape]
            assert list(field.dims) == (sizes[1:] if batched else sizes)
            assert data_type(field) == spec.dtype and not field.optional
        server._graph(name)._session  # noqa: B018  the checks of Triton's backend
    unet = server.configs["demo_unet"]
    assert [list(field.dims) for field in unet.input] == [[-1, 4, -1, -1], [1], [-1, -1, 96]]


def test_the_pipeline_is_a_python_model(server: TritonServer) -> None:
    config = server.configs["demo"]
    assert config.backend == "python" and config.max_batch_size == 4
    assert config.dynamic_batching.max_queue_delay_microseconds == 20_000
    assert [each.name for each in config.input] == [each.name for each in INPUTS]
    assert [each.name for each in config.input if not each.optional] == ["prompt"]
    assert [each.name for each in config.output] == [each.name for each in OUTPUTS]
    assert not config.model_transaction_policy.decoupled


def test_options_are_in_the_configurations(tmp_path: Path) -> None:
    options = RepositoryOptions(
        name="x.y-z", max_batch=1, instances=2, pipelines=3, kind="cpu", queue_delay=0
    )
    write_repository(PACKAGE_DIR, tmp_path / "r", options=options)
    pipeline = read_config(tmp_path / "r" / "x.y-z" / "config.pbtxt")
    decoder = read_config(tmp_path / "r" / "x.y-z_vae_decoder" / "config.pbtxt")
    assert (pipeline.instance_group[0].count, decoder.instance_group[0].count) == (3, 2)
    kinds = type(decoder.instance_group[0]).Kind
    assert decoder.instance_group[0].kind == kinds.Value("KIND_CPU")
    assert decoder.max_batch_size == pipeline.max_batch_size == 1
    assert not pipeline.HasField("dynamic_batching")


def test_adapter_graphs_are_written_on_request(lora_package: Path, tmp_path: Path) -> None:
    plain = write_repository(lora_package, tmp_path / "plain", options=DEMO)
    assert {"unet", "text_encoder"} <= {model.graph for model in plain.models}
    assert not [model.graph for model in plain.models if "lora" in model.graph]
    options = RepositoryOptions(name="demo", adapter_graphs=True)
    record = write_repository(lora_package, tmp_path / "all", options=options)
    graphs = Package.load(lora_package, verify=False).graphs
    assert [model.graph for model in record.models] == list(graphs)
    server = TritonServer(tmp_path / "all")
    for model in record.models:
        if "lora" in model.graph:
            assert server.configs[model.name].max_batch_size == 0
            assert all(not each.optional for each in server.configs[model.name].input)
        server._graph(model.name)._session  # noqa: B018  the checks of Triton's backend


def test_scalars_and_batches_in_configurations() -> None:
    batch = TensorSpec("a", "float32", ("batch", 3))
    assert has_batch([batch, TensorSpec("b", "int64", ("batch",))])
    for other in ((), (1,), ("?", 3), (2, 3), ("sequence", 3), ("batch", "batch")):
        assert not has_batch([batch, TensorSpec("b", "int64", other)])
    one = TensorSpec("b", "int64", ("batch",))
    config = GraphModel("g", "m", (batch, one), (batch,), 8).config(instances=1, kind="gpu")
    assert config.inputs[1] == ConfigTensor("b", "int64", (1,), has_no_dims=True)
    assert "reshape: { shape: [ ] }" in config.text()
    scalar = GraphModel("g", "m", (TensorSpec("s", "float32", ()),), (batch,), 0)
    assert scalar.config(instances=1, kind="gpu").inputs[0] == ConfigTensor(
        "s", "float32", (1,), has_no_dims=True
    )


@pytest.mark.parametrize("name", ['a"b\\c', "tab\tline\nend", "grün ☃", "\x00\x7f", "} input {"])
def test_names_survive_the_text_format(name: str, tmp_path: Path) -> None:
    tensor = ConfigTensor(name, "float32", (-1, 2))
    text = ModelConfig("m", "python", (tensor,), (tensor,)).text()
    assert text.isascii() and quoted(name).isprintable()
    (tmp_path / "config.pbtxt").write_text(text, encoding="utf-8")
    config = read_config(tmp_path / "config.pbtxt")
    assert [each.name for each in config.input] == [name]


def test_files_are_hard_links_or_copies(tmp_path: Path) -> None:
    package = Path(shutil.copytree(PACKAGE_DIR, tmp_path / "package"))
    weights = package / "unet" / "model.onnx"
    if not _can_link(tmp_path):
        pytest.skip("no hard links in this file system")
    linked = write_repository(package, tmp_path / "linked", options=DEMO)
    copied = write_repository(
        package, tmp_path / "copied", options=RepositoryOptions(name="demo", copy=True)
    )
    assert linked == copied
    place = Path("demo_unet/1/model.onnx")
    assert weights.samefile(tmp_path / "linked" / place)
    assert not weights.samefile(tmp_path / "copied" / place)
    assert (tmp_path / "copied" / place).read_bytes() == weights.read_bytes()
    shared = [
        tmp_path / "copied" / f"demo_{g}/1/model.onnx_data"
        for g in ("text_encoder", "text_encoder_inputs_embeds")
    ]
    assert shared[0].samefile(shared[1])  # weights that two graphs use are there once
    assert set(files_of(tmp_path / "linked")) == set(files_of(tmp_path / "copied"))
    assert not [p for p in (tmp_path / "linked").rglob("*") if p.is_symlink()]
    assert names_in(tmp_path) == ["copied", "linked", "package"]


def _can_link(folder: Path) -> bool:
    (folder / "a").touch()
    try:
        os.link(folder / "a", folder / "b")
    except OSError:
        return False
    finally:
        (folder / "a").unlink()
        (folder / "b").unlink(missing_ok=True)
    return True


def test_without_hard_links_files_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    def no_links(*arguments: Any, **further: Any) -> None:
        raise OSError("not here")

    monkeypatch.setattr(os, "link", no_links)
    write_repository(PACKAGE_DIR, tmp_path / "r", options=DEMO)
    assert set(files_of(tmp_path / "r")) == set(files_of(repository))
    assert not (tmp_path / "r/demo_unet/1/model.onnx").samefile(PACKAGE_DIR / "unet/model.onnx")


def test_files_of_the_python_model(repository: Path) -> None:
    inside = set(files_of(repository / "demo" / "1"))
    assert {"model.py", RECORD, "package/sdexport.json", "package/tokenizer/vocab.json"} <= inside
    assert not [name for name in inside if "reference" in name or name.endswith(".onnx")]
    assert (repository / RECORD).read_bytes() == (repository / "demo/1" / RECORD).read_bytes()
    record = RepositoryRecord.read(repository / RECORD)
    assert RepositoryRecord.read(repository / RECORD).to_json() == record.to_json()


def truncated(package: Path) -> None:
    path = package / "unet" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1])


def altered(package: Path) -> None:
    path = package / "unet" / "model.onnx"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def a_pipe(package: Path) -> None:
    (package / "tokenizer" / "vocab.json").unlink()
    os.mkfifo(package / "tokenizer" / "vocab.json")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated, "unet/model.onnx is truncated or altered"),
        (altered, "unet/model.onnx was altered"),
        (lambda package: (package / MANIFEST).unlink(), "has no sdexport.json"),
        (lambda package: (package / MANIFEST).write_text("{"), "sdexport.json"),
        (lambda package: shutil.rmtree(package), "there is no such folder"),
        (lambda package: shutil.rmtree(package / "tokenizer"), "is missing"),
        pytest.param(
            a_pipe,
            "is not a regular file",
            marks=pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system"),
        ),
    ],
)
def test_a_damaged_package_writes_nothing(tmp_path: Path, damage: Any, message: str) -> None:
    package = Path(shutil.copytree(PACKAGE_DIR, tmp_path / "package"))
    damage(package)
    shown = CliRunner().invoke(main, ["triton", str(package), str(tmp_path / "models")])
    assert shown.exit_code == 1 and message in shown.stderr
    assert shown.stderr.startswith("error: ") and shown.stderr.count("\n") == 1
    assert "bug" not in shown.stderr
    assert names_in(tmp_path) in ([], ["package"])


def test_adapters_and_bf16_are_rejected(
    tmp_path: Path, control_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (adapter, *_) = [p.parent for p in control_folder.glob("*/sdexport.json")]
    with pytest.raises(InvalidArgumentError, match="Triton's pipeline takes no adapters"):
        write_repository(adapter, tmp_path / "models")
    found = Package.load(PACKAGE_DIR)
    components = {
        name: replace(each, precision="bf16") for name, each in found.manifest.components.items()
    }
    halves = replace(found, manifest=replace(found.manifest, components=components))
    monkeypatch.setattr(Package, "load", lambda *a, **k: halves)
    with pytest.raises(PackageError, match=r"bf16, for which .* export it in another precision"):
        write_repository(PACKAGE_DIR, tmp_path / "models")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("name", ["", "a/b", "..", "a\n", "ü", "x" * 65, ".hidden", "a."])
def test_names_that_no_model_can_have(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="name"):
        RepositoryOptions(name=name)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_batch": 0},
        {"instances": True},
        {"kind": "tpu"},
        {"queue_delay": -1},
        {"max_steps": 10**9},
        {"pipelines": 1.5},
    ],
)
def test_options_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(wrong))):
        RepositoryOptions(**wrong)


def test_a_folder_that_cannot_name_a_model(tmp_path: Path) -> None:
    package = Path(shutil.copytree(PACKAGE_DIR, tmp_path / "grünes paket"))
    shown = CliRunner().invoke(main, ["triton", str(package), str(tmp_path / "models")])
    assert shown.exit_code == 1 and "give one with --name" in shown.stderr
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("name", ["model.py", "__pycache__", "grün"])
def test_odd_folders_of_packages(tmp_path: Path, name: str) -> None:
    package = Path(shutil.copytree(PACKAGE_DIR, tmp_path / name))
    record = write_repository(package, tmp_path / "models", options=DEMO)
    assert record.package == "package"
    TritonServer(tmp_path / "models").python("demo")


def test_weights_in_the_name_of_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    package = Package.load(PACKAGE_DIR, verify=False)
    survey = replace(package.surveys.of("unet"), locations=frozenset({"model.onnx"}))
    monkeypatch.setattr(package.surveys, "of", lambda graph: survey)
    with pytest.raises(PackageError, match=r"its weights are in model\.onnx"):
        model_files(package, "unet")


def test_what_is_replaced(tmp_path: Path, repository: Path) -> None:
    models = Path(shutil.copytree(repository, tmp_path / "models"))
    before = sorted(files_of(models))
    with pytest.raises(FileExistsError, match="use --force"):
        write_repository(PACKAGE_DIR, models, options=DEMO)
    other = RepositoryOptions(name="other")
    write_repository(PACKAGE_DIR, models, options=other, force=True)
    assert (models / "other" / "config.pbtxt").is_file() and not (models / "demo").exists()
    write_repository(PACKAGE_DIR, models, options=DEMO, force=True)
    assert sorted(files_of(models)) == before
    for foreign in ("mine/config.pbtxt", "demo/2/model.py"):
        path = models / foreign
        path.parent.mkdir(parents=True)
        path.touch()
        with pytest.raises(FileExistsError, match="which sdexport did not write"):
            write_repository(PACKAGE_DIR, models, options=DEMO, force=True)
        shutil.rmtree(path.parent)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").touch()
    with pytest.raises(FileExistsError, match=f"not a folder with {RECORD}"):
        write_repository(PACKAGE_DIR, tmp_path / "home", options=DEMO, force=True)
    inner = Path(shutil.copytree(PACKAGE_DIR, models / "package"))
    with pytest.raises(InvalidArgumentError, match="the package is in this folder"):
        write_repository(inner, models, options=DEMO, force=True)


def test_an_error_on_the_way_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    models = Path(shutil.copytree(repository, tmp_path / "models"))
    before = sorted(files_of(models))

    def full(*arguments: Any, **further: Any) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(repository_writer, "pipeline_config", full)
    for destination, force in ((tmp_path / "new", False), (models, True)):
        with pytest.raises(OSError, match="No space left"):
            write_repository(PACKAGE_DIR, destination, options=DEMO, force=force)
    assert names_in(tmp_path) == ["models"]
    assert sorted(files_of(models)) == before


def test_a_package_that_changes_meanwhile_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Path(shutil.copytree(PACKAGE_DIR, tmp_path / "package"))
    load = Package.load

    def then_altered(*arguments: Any, **further: Any) -> Package:
        found = load(*arguments, **further)
        altered(package)
        return found

    monkeypatch.setattr(Package, "load", then_altered)
    for copy in (False, True):
        options = RepositoryOptions(name="demo", copy=copy)
        with pytest.raises(PackageError, match=r"changed on disk|was altered"):
            write_repository(package, tmp_path / "models", options=options)
    assert names_in(tmp_path) == ["package"]


def test_command_prints_what_it_wrote(tmp_path: Path, lora_package: Path) -> None:
    run = CliRunner()
    package = Path(shutil.copytree(lora_package, tmp_path / "package"))
    found = run.invoke(main, ["triton", str(package), str(tmp_path / "m"), "--name", "a", "--json"])
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout)
    assert document["pipeline"] == "a" and document["models"]["a_unet"] == {
        "graph": "unet",
        "max_batch_size": 0,
    }
    (package / "engines").mkdir()
    again = run.invoke(
        main, ["triton", str(package), str(tmp_path / "m"), "--name", "a", "--force"]
    )
    assert again.exit_code == 0 and "a (pipeline), a_text_encoder" in again.stdout
    assert "left out: " in again.stderr and "unet.lora" in again.stderr
    assert "not used: " in again.stderr and "engines" in again.stderr


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--max-batch", "1", "--max-queue-delay-us", "20000"], True),  # the default, but given
        (["--max-batch", "1"], False),
        (["--max-batch", "2", "--max-queue-delay-us", "5"], False),
    ],
)
def test_a_delay_without_batches_is_named(tmp_path: Path, options: list[str], named: bool) -> None:
    arguments = ["triton", str(PACKAGE_DIR), str(tmp_path / "m"), "--name", "a", *options]
    found = CliRunner().invoke(main, arguments)
    assert found.exit_code == 0, found.output
    assert ("not used: --max-queue-delay-us" in found.stderr) == named


@pytest.mark.skipif(os.name == "nt", reason="modes of POSIX")
def test_files_can_be_read_by_another_user(repository: Path) -> None:
    for path in [repository, *repository.rglob("*")]:
        readable = stat.S_IROTH | (stat.S_IXOTH if path.is_dir() else 0)
        assert path.stat().st_mode & readable == readable, path
