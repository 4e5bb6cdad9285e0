"""One contract for every session that this machine can open."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdexport.engines import EngineError, Session
from tests.helpers.unet_sessions import OPENERS, feeds, open_unet
from tests.tolerances import COMPONENT_REL, GPU_COMPONENT_REL, THREADS_ABS, assert_close


@pytest.fixture(params=OPENERS)
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    with open_unet(request, request.param) as opened:
        yield opened


def test_session_names_and_shapes(session: Session) -> None:
    assert [spec.name for spec in session.inputs] == [
        "sample",
        "timestep",
        "encoder_hidden_states",
    ]
    assert [spec.name for spec in session.outputs] == ["out_sample"]
    assert {spec.dtype for spec in (*session.inputs, *session.outputs)} == {"float32"}
    assert session.inputs[0].shape == ("batch", 4, "height", "width")
    assert session.inputs[2].shape == ("batch", "sequence", 96)


@pytest.mark.parametrize("size", [(1, 16, 16), (3, 8, 32), (2, 9, 17), (1, 5, 7)])
def test_session_accepts_any_size(session: Session, size: tuple[int, int, int]) -> None:
    inputs = feeds(*size)
    result = session.run(inputs)
    assert list(result) == ["out_sample"]
    assert result["out_sample"].shape == inputs["sample"].shape
    assert result["out_sample"].dtype == np.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"sample": np.zeros((1, 4, 16, 16), np.float16)},
            r"unet: input 'sample': expected float32",
        ),
        ({"sample": np.zeros((1, 3, 16, 16), np.float32)}, r"got float32 \(1, 3, 16, 16\)"),
        ({"sample": np.zeros((4, 16, 16), np.float32)}, "expected float32"),
        ({"sample": np.zeros((0, 4, 16, 16), np.float32)}, "empty array"),
        ({"sample": [[1.0]]}, "expected a NumPy array"),
        ({"sample": np.zeros((2, 4, 16, 16), np.float32)}, "'batch' is 2 in input 'sample' and 1"),
        ({"timestep": np.array([5])}, "input 'timestep'"),
        ({"sample": np.zeros((1, 4, 16), np.float32)}, "expected float32"),
        ({"sample": np.zeros((1, 4, 16, 16), ">f4")}, "expected float32"),
        ({"latents": np.zeros(1, np.float32)}, "no input 'latents'; the inputs are sample"),
    ],
)
def test_session_rejects_wrong_feeds(
    session: Session, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        session.run(feeds() | change)


def test_session_names_missing_feeds(session: Session) -> None:
    inputs = feeds()
    del inputs["timestep"]
    with pytest.raises(ValueError, match="missing input 'timestep' float32"):
        session.run(inputs)


def test_session_outputs_belong_to_the_caller(session: Session) -> None:
    first = session.run(feeds())["out_sample"]
    kept = first.copy()
    session.run(feeds(1, 16, 16) | {"timestep": np.full(1, 20.0, np.float32)})
    np.testing.assert_array_equal(first, kept)
    first[:] = 0
    np.testing.assert_array_equal(session.run(feeds())["out_sample"], kept)


@pytest.mark.parametrize("kind", ["strided", "reversed", "read-only", "Fortran"])
def test_session_accepts_arrays_of_any_layout(session: Session, kind: str) -> None:
    inputs = feeds()
    expected = session.run(inputs)["out_sample"]
    sample = inputs["sample"]
    if kind == "strided":
        wide = np.zeros((1, 4, 16, 32), np.float32)
        wide[..., ::2] = sample
        inputs["sample"] = wide[..., ::2]
    elif kind == "reversed":
        inputs["sample"] = np.ascontiguousarray(sample[..., ::-1])[..., ::-1]
    elif kind == "Fortran":
        inputs["sample"] = np.asfortranarray(sample)
    else:
        sample.flags.writeable = False
    before = inputs["sample"].copy()
    np.testing.assert_array_equal(session.run(inputs)["out_sample"], expected)
    np.testing.assert_array_equal(inputs["sample"], before)


def test_session_returns_nan_for_nan_and_stays_usable(session: Session) -> None:
    inputs = feeds()
    expected = session.run(inputs)["out_sample"]
    spoilt = inputs["sample"].copy()
    spoilt[0, 0, 3, 3] = np.nan
    assert np.isnan(session.run(inputs | {"sample": spoilt})["out_sample"]).any()
    np.testing.assert_array_equal(session.run(inputs)["out_sample"], expected)


def test_session_agrees_with_the_reference_output(
    session: Session, package: Path, request: pytest.FixtureRequest
) -> None:
    if "fake" in request.node.callspec.id:
        pytest.skip("the stand-in computes something else")
    if "webgpu" in request.node.callspec.id:
        pytest.skip("the small graph computes something else; test_webgpu_package.py has the UNet")
    with np.load(package / "reference" / "unet.npz") as arrays:
        inputs = {k.removeprefix("input."): arrays[k] for k in arrays if k.startswith("input.")}
        expected = arrays["output.out_sample"]
    on_gpu = request.node.get_closest_marker("gpu") is not None
    rel = GPU_COMPONENT_REL if on_gpu else COMPONENT_REL
    assert_close(session.run(inputs)["out_sample"], expected, rel=rel)


def test_session_bind_copies_constants_and_keeps_results(session: Session) -> None:
    inputs = feeds()
    expected = session.run(inputs)["out_sample"]
    embeds = inputs.pop("encoder_hidden_states")
    with session.bind(encoder_hidden_states=embeds) as bound:
        assert [spec.name for spec in bound.inputs] == ["sample", "timestep"]
        embeds[:] = 0
        np.testing.assert_array_equal(bound.run(inputs)["out_sample"], expected)
        with pytest.raises(ValueError, match="no input 'encoder_hidden_states'"):
            bound.run(feeds())
    with pytest.raises(EngineError, match="closed"):
        bound.run(inputs)
    assert session.run(feeds())["out_sample"].shape == (1, 4, 16, 16)


def test_session_bind_of_a_bound_session_and_of_all_inputs(session: Session) -> None:
    inputs = feeds()
    expected = session.run(inputs)["out_sample"]
    with (
        session.bind(encoder_hidden_states=inputs["encoder_hidden_states"]) as once,
        once.bind(timestep=inputs["timestep"]) as twice,
        twice.bind(sample=inputs["sample"]) as everything,
    ):
        assert everything.inputs == ()
        np.testing.assert_array_equal(
            twice.run({"sample": inputs["sample"]})["out_sample"], expected
        )
        np.testing.assert_array_equal(everything.run({})["out_sample"], expected)


def test_session_shares_an_input_between_both_halves(session: Session) -> None:
    inputs = feeds(batch=4)
    one = inputs["sample"][:2].copy()
    inputs["sample"] = np.concatenate([one, one])
    expected = session.run(inputs)["out_sample"]
    embeds, time = inputs["encoder_hidden_states"], inputs["timestep"]
    with session.bind(shared=("sample",), encoder_hidden_states=embeds) as bound:
        assert [spec.name for spec in bound.inputs] == ["sample", "timestep"]
        for _ in range(2):
            outputs = bound.run({"sample": one, "timestep": time})["out_sample"]
            assert_close(outputs, expected, rel=COMPONENT_REL)
        with pytest.raises(ValueError, match="'batch' is"):
            bound.run({"sample": inputs["sample"], "timestep": time})
    with session.bind(shared=("sample", "encoder_hidden_states")) as bound:
        part = {"sample": one, "timestep": time, "encoder_hidden_states": embeds[:2]}
        outputs = bound.run(part)["out_sample"]
        assert_close(outputs[:2], expected[:2], rel=COMPONENT_REL)
        assert_close(outputs[2:], outputs[:2], rel=COMPONENT_REL)
        assert (bound.mapped, bound.refits) == (session.mapped, session.refits)
    with pytest.raises(ValueError, match="no input 'noise' to share"):
        session.bind(shared=("noise",), encoder_hidden_states=embeds)
    with pytest.raises(ValueError, match="no input 'encoder_hidden_states' to share"):
        session.bind(shared=("encoder_hidden_states",), encoder_hidden_states=embeds)


def test_session_bound_session_of_a_closed_session(session: Session) -> None:
    inputs = feeds()
    bound = session.bind(encoder_hidden_states=inputs.pop("encoder_hidden_states"))
    session.close()
    with pytest.raises(EngineError, match="closed"):
        bound.run(inputs)
    bound.close()


def test_session_bind_rejects_wrong_constants(session: Session) -> None:
    with pytest.raises(ValueError, match="no input 'nothing'"):
        session.bind(nothing=np.zeros(1, np.float32))
    with pytest.raises(ValueError, match="expected float32"):
        session.bind(encoder_hidden_states=np.zeros((1, 77, 96)))


def test_session_checks_bound_sizes_against_the_rest(session: Session) -> None:
    inputs = feeds(batch=2)
    with (
        session.bind(encoder_hidden_states=feeds(batch=1)["encoder_hidden_states"]) as bound,
        pytest.raises(ValueError, match="'batch' is"),
    ):
        bound.run({"sample": inputs["sample"], "timestep": inputs["timestep"]})


def test_session_close_twice_then_use(session: Session) -> None:
    with session:
        pass
    session.close()
    with pytest.raises(EngineError, match="closed"):
        session.run(feeds())


def test_session_in_threads_computes_the_same(session: Session) -> None:
    sizes = [(1, 8 + 4 * (i % 3), 16) for i in range(8)]
    one = [session.run(feeds(*size))["out_sample"] for size in sizes]
    with ThreadPoolExecutor(4) as pool:
        many = list(pool.map(lambda size: session.run(feeds(*size))["out_sample"], sizes))
    for a, b in zip(one, many, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=THREADS_ABS)
