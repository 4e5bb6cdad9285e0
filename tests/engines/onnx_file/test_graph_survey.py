"""One pass over an ONNX file finds its operators, its weights' places, and absurd sizes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from sdexport.demo_model import PACKAGE_DIR
from sdexport.engines.errors import EngineError
from sdexport.engines.onnx_file.graph_specs import graph_specs
from sdexport.engines.onnx_file.graph_survey import GraphSurvey, survey
from sdexport.engines.onnx_file.operators import unknown_parts
from sdexport.engines.session import ANY_SIZE, TensorSpec

GRAPHS = sorted(PACKAGE_DIR.glob("*/*.onnx"))


def model_of(*nodes: NodeProto, initializers: list[TensorProto] | None = None) -> ModelProto:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    return helper.make_model(helper.make_graph(nodes, "g", [value], [], initializers or []))


def surveyed(model: ModelProto, folder: Path) -> GraphSurvey:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return survey(path)


@pytest.mark.parametrize("path", GRAPHS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_survey_counts_what_onnx_reads(path: Path) -> None:
    found = survey(path)
    nodes = onnx.load(path, load_external_data=False).graph.node
    assert sum(found.operators.values()) == len(nodes)
    assert set(found.operators) == {(node.domain, node.op_type) for node in nodes}
    assert (found.problems, found.functions, found.depth, unknown_parts(found)) == ((), 0, 0, [])


def body(*nodes: NodeProto) -> GraphProto:
    return helper.make_graph(nodes, "body", [], [])


def nested(depth: int) -> NodeProto:
    inner = body() if depth == 0 else body(nested(depth - 1))
    return helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)


def with_function() -> ModelProto:
    model = model_of(helper.make_node("Relu", ["x"], ["y"]))
    call_itself = helper.make_node("f", ["a"], ["b"], domain="mine")
    imports = [helper.make_opsetid("mine", 1)]
    model.functions.append(helper.make_function("mine", "f", ["a"], ["b"], [call_itself], imports))
    return model


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        (model_of(helper.make_node("Loop", ["x"], ["y"], body=body())), ["Loop", "graphs inside"]),
        (model_of(helper.make_node("Scan", ["x"], ["y"], body=body())), ["Scan", "graphs inside"]),
        (model_of(nested(3)), ["If", "graphs inside of operators"]),
        (model_of(helper.make_node("SequenceMap", ["x"], ["y"], body=body())), ["SequenceMap"]),
        (model_of(helper.make_node("SequenceInsert", ["x"], ["y"])), ["SequenceInsert"]),
        (model_of(helper.make_node("Add", ["x"], ["y"], domain="ai.evil")), ["ai.evil.Add"]),
        (model_of(helper.make_node("EPContext", [], ["y"], domain="com.microsoft")), ["EPContext"]),
        (model_of(helper.make_node("Hidden", [], ["y"], domain="ai.onnx")), ["Hidden"]),
        (with_function(), ["mine.f", "1 functions of its own"]),
    ],
)
def test_unknown_parts_are_named(tmp_path: Path, model: ModelProto, parts: list[str]) -> None:
    unknown = ", ".join(unknown_parts(surveyed(model, tmp_path)))
    for part in parts:
        assert part in unknown


def test_operators_inside_of_known_ones_are_found(tmp_path: Path) -> None:
    hidden = body(helper.make_node("Decode", [], [], domain="evil"))
    found = surveyed(model_of(helper.make_node("Relu", ["x"], ["y"], then_branch=hidden)), tmp_path)
    assert "evil.Decode" in unknown_parts(found)


def test_domain_of_onnx_has_two_names(tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["y"], domain="ai.onnx")
    assert unknown_parts(surveyed(model_of(node), tmp_path)) == []


def shape(*sizes: int, name: str = "s") -> TensorProto:
    return numpy_helper.from_array(np.array(sizes, np.int64), name)


def huge(name: str = "w", **fields: object) -> TensorProto:
    return TensorProto(name=name, data_type=1, dims=[2**20, 2**20], **fields)  # type: ignore[arg-type]


def grown(operator: str, *inputs: str, sizes: TensorProto) -> ModelProto:
    return model_of(helper.make_node(operator, inputs, ["y"]), initializers=[sizes])


def constant(**value: object) -> ModelProto:
    nodes = (
        helper.make_node("Constant", [], ["s"], **value),
        helper.make_node("ConstantOfShape", ["s"], ["y"]),
    )
    return model_of(*nodes)


def declared(dims: list[int], where: str) -> ModelProto:
    model = model_of(helper.make_node("Relu", ["x"], ["y"]))
    value = helper.make_tensor_value_info("z", TensorProto.FLOAT, dims)
    getattr(model.graph, where).append(value)
    return model


def sparse(dims: list[int]) -> ModelProto:
    values = numpy_helper.from_array(np.ones(1, np.float32), "v")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "i")
    model = model_of()
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, dims))
    return model


def packed_dims() -> ModelProto:
    tensor = TensorProto(name="w", data_type=1)
    tensor.dims.extend([2] * 5000)
    return model_of(initializers=[tensor])


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (grown("ConstantOfShape", "s", sizes=shape(2**20, 2**20)), "makes 1.1e+12 elements"),
        (grown("Expand", "x", "s", sizes=shape(1, 2**40)), "makes 1.1e+12 elements"),
        (grown("Tile", "x", "s", sizes=shape(2**20)), "1048576 times larger"),
        (grown("Pad", "x", "s", sizes=shape(0, 2**40)), "makes"),
        (grown("OneHot", "x", "s", "v", sizes=shape(2**40)), "makes"),
        (grown("Range", "z", "s", "d", sizes=shape(2**40)), "makes"),
        (grown("Resize", "x", "", "", "s", sizes=shape(1, 3, 2**20, 2**20)), "makes"),
        (
            grown("Resize", "x", "", "s", sizes=numpy_helper.from_array(np.float32([1e9]), "s")),
            "times larger",
        ),
        (grown("ConstantOfShape", "s", sizes=shape(*[2**62] * 32)), "1.0e+300 elements"),
        (constant(value=shape(2**40)), "makes 1.1e+12 elements"),
        (constant(value_ints=[2**20, 2**20]), "makes 1.1e+12 elements"),
        (constant(value_int=2**40), "makes 1.1e+12 elements"),
        (model_of(initializers=[huge()]), "has no data for its 1.1e+12 elements"),
        (model_of(initializers=[huge(raw_data=b"12345678")]), "has 8 bytes, not 4.4e+12"),
        (model_of(initializers=[huge(float_data=[1.0])]), "has no data"),
        (model_of(initializers=[TensorProto(name="w", data_type=8, dims=[9])]), "has no data"),
        (model_of(initializers=[TensorProto(name="w", data_type=1, dims=[-1])]), "sizes -1"),
        (constant(value=huge()), "has no data"),
        (packed_dims(), "has the sizes 2x2x2x2x2x2x2x2x..."),
        (declared([2**20, 2**20], "output"), "'z' has 1.1e+12 elements"),
        (declared([2**20, 2**20], "input"), "'z' has 1.1e+12 elements"),
        (declared([-5], "output"), "'z' has the sizes -5"),
        (sparse([2**20, 2**20]), "a sparse tensor has 1.1e+12 elements"),
    ],
)
def test_absurd_sizes_are_problems(tmp_path: Path, model: ModelProto, problem: str) -> None:
    assert problem in "; ".join(surveyed(model, tmp_path).problems)


@pytest.mark.parametrize(
    "tensor",
    [
        numpy_helper.from_array(np.zeros((2, 3), dtype), "w")
        for dtype in (np.float32, np.float16, np.float64, np.int64, np.int8, np.bool_, np.int32)
    ]
    + [
        helper.make_tensor("w", TensorProto.BFLOAT16, [3], [1.0, 2.0, 3.0]),
        helper.make_tensor("w", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0]),
        helper.make_tensor("w", TensorProto.INT64, [300], list(range(300))),
        helper.make_tensor("w", TensorProto.INT4, [5], [1, 2, 3, 4, 5]),
        helper.make_tensor("w", TensorProto.STRING, [2], [b"a", b"b"]),
        helper.make_tensor("w", TensorProto.FLOAT, [0, 2**40], []),
    ],
    ids=lambda tensor: TensorProto.DataType.Name(tensor.data_type),
)
def test_tensors_of_every_type_are_fine(tmp_path: Path, tensor: TensorProto) -> None:
    assert surveyed(model_of(initializers=[tensor]), tmp_path).problems == ()


def test_values_are_read_from_every_place_of_the_same_name(tmp_path: Path) -> None:
    """A name in an inner graph does not hide that of the outer one."""
    inner = helper.make_graph([], "inner", [], [], [shape(1)])
    nodes = (
        helper.make_node("ConstantOfShape", ["s"], ["y"]),
        helper.make_node("If", ["x"], ["z"], then_branch=inner, else_branch=inner),
    )
    model = model_of(*nodes, initializers=[shape(2**40)])
    assert "makes 1.1e+12 elements" in "; ".join(surveyed(model, tmp_path).problems)


def test_many_problems_are_a_few_lines(tmp_path: Path) -> None:
    model = model_of(initializers=[huge(f"w{i}\x1b") for i in range(1000)])
    problems = surveyed(model, tmp_path).problems
    assert len(problems) < 20 and all(text.isprintable() for text in problems)
    [problem] = surveyed(model_of(initializers=[huge("w" * 10**6)]), tmp_path).problems
    assert len(problem) < 200


def test_a_changed_file_is_surveyed_again(tmp_path: Path) -> None:
    fresh = surveyed(model_of(helper.make_node("Relu", ["x"], ["y"])), tmp_path)
    path = tmp_path / "model.onnx"
    assert survey(path) is not fresh  # it may change again without a new time of change
    os.utime(path, ns=(1, 1))
    settled = survey(path)
    assert survey(path) is settled == fresh
    os.utime(path, ns=(2, 2))
    assert survey(path) is not settled


def repeated_fields() -> bytes:
    """An attribute with two tensors, which readers would join to one of 2**40 elements."""
    attribute = helper.make_attribute("value", TensorProto(data_type=1, dims=[2**20]))
    twice = attribute.SerializeToString() + b"\x2a\x06\x10\x01" + b"\x08\x80\x80\x40"
    node = b"\x22\x08Constant" + b"\x2a" + bytes([len(twice)]) + twice
    graph = b"\x0a" + bytes([len(node)]) + node
    return b"\x3a" + bytes([len(graph)]) + graph


def test_repeated_fields_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(repeated_fields())
    with pytest.raises(ValueError, match="a field is repeated"):
        survey(path)


def field(number: int, content: bytes) -> bytes:
    """A field of bytes in a protocol buffer; the length takes three bytes."""
    length = len(content)
    return (
        bytes([number << 3 | 2, length & 127 | 128, length >> 7 & 127 | 128, length >> 14])
        + content
    )


def test_deep_nesting_is_rejected(tmp_path: Path) -> None:
    graph = b""
    for _ in range(5000):  # graph, node, attribute, and again
        graph = field(1, field(5, field(6, graph)))
    path = tmp_path / "model.onnx"
    path.write_bytes(field(7, graph))
    with pytest.raises(ValueError, match="nested too deeply"):
        survey(path)


def everything() -> bytes:
    model = model_of(nested(1), initializers=[shape(3), huge(raw_data=b"1234")])
    model.functions.extend(with_function().functions)
    model.graph.sparse_initializer.extend(sparse([3]).graph.sparse_initializer)
    return model.SerializeToString()


EVERYTHING = everything()


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, len(EVERYTHING) - 1), content=st.binary(min_size=1, max_size=12))
def test_garbage_is_a_value_error(
    tmp_path_factory: pytest.TempPathFactory, at: int, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("g") / "model.onnx"
    path.write_bytes(EVERYTHING[:at] + content + EVERYTHING[at + len(content) :])
    try:
        found = survey(path)
    except ValueError as error:
        assert "model.onnx" in str(error)
    else:
        assert all(map(str.isprintable, (*found.problems, *map(repr, unknown_parts(found)))))


def test_inputs_are_those_without_initializers(tmp_path: Path) -> None:
    model = model_of(nested(1), initializers=[shape(1, name="w")])
    for name, dims in (("w", [1]), ("y", ["batch", None, 3])):
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT64, dims))
    found = surveyed(model, tmp_path)
    specs, outputs = graph_specs(tmp_path / "model.onnx")
    assert [value.spec for value in found.inputs] == list(specs)
    assert specs == (
        TensorSpec("x", "float32", ("n",)),
        TensorSpec("y", "int64", ("batch", ANY_SIZE, 3)),
    )
    assert outputs == ()


@pytest.mark.parametrize(
    "value",
    [
        helper.make_tensor_sequence_value_info("z", TensorProto.FLOAT, [1]),
        helper.make_tensor_value_info("z", TensorProto.FLOAT, None),
        helper.make_empty_tensor_value_info("z"),
    ],
    ids=["sequence", "no shape", "no type"],
)
def test_values_that_are_no_tensors_have_no_specs(
    tmp_path: Path, value: onnx.ValueInfoProto
) -> None:
    model = model_of()
    model.graph.output.append(value)
    assert surveyed(model, tmp_path).outputs[0].spec is None
    with pytest.raises(EngineError, match=r"model\.onnx has inputs or outputs that are not"):
        graph_specs(tmp_path / "model.onnx")
