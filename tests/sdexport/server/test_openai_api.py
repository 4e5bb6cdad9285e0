"""OpenAI's images API, used with the official `openai` package."""

from __future__ import annotations

import asyncio
import base64
import io
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

from sdexport import Pipeline, read_parameters
from sdexport.demo_model import PACKAGE_DIR
from sdexport.server.jobs import CANCELLED
from tests.helpers.live_server import LiveServer, live_server, wait_until

PROMPT = "a large red circle"
SETTINGS: dict[str, Any] = {"num_inference_steps": 3, "seed": 7}
LONG: dict[str, Any] = {"num_inference_steps": 150, "seed": 7}


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with client_of(server) as made:
        yield made


@pytest.fixture(scope="module")
def picture(demo_pipe: Pipeline) -> Image.Image:
    """An image to edit."""
    image: Image.Image = demo_pipe(PROMPT, **SETTINGS).images[0]
    return image


def client_of(server: LiveServer, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key=key, max_retries=0)


def opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def png(image: Image.Image) -> tuple[str, bytes, str]:
    content = io.BytesIO()
    image.save(content, "PNG")
    return "image.png", content.getvalue(), "image/png"


def hole(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """A mask in OpenAI's sense: transparent in a box."""
    mask = Image.new("RGBA", size, (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), box)
    return mask


def test_models_lists_the_packages(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").object == "model"
    with pytest.raises(openai.NotFoundError, match="unknown name 'other'") as caught:
        client.models.retrieve("other")
    assert caught.value.code == "model_not_found"


def test_generate_returns_the_image_of_the_library(
    client: openai.OpenAI, picture: Image.Image
) -> None:
    found = client.images.generate(prompt=PROMPT, model="demo", extra_body=SETTINGS)
    assert found.data is not None
    image = opened(found.data[0].b64_json or "")
    assert image.tobytes() == picture.tobytes()
    assert read_parameters(image).seed == SETTINGS["seed"]
    assert (found.size, found.output_format, found.background) == ("128x128", "png", "opaque")


def test_generate_takes_size_number_format_and_settings_of_the_library(
    client: openai.OpenAI, demo_pipe: Pipeline
) -> None:
    settings = SETTINGS | {"negative_prompt": "blue", "scheduler": "DPM++ 2M Karras"}
    found = client.images.generate(
        prompt=PROMPT,
        n=2,
        size="64x96",
        output_format="webp",
        output_compression=60,
        user="someone",
        extra_body=settings,
    )
    assert found.data is not None
    expected = demo_pipe(PROMPT, width=64, height=96, num_images_per_prompt=2, **settings)
    images = [opened(each.b64_json or "") for each in found.data]
    assert [image.format for image in images] == ["WEBP"] * 2
    recorded = [read_parameters(image) for image in images]
    for image, ours in zip(recorded, expected.parameters, strict=True):
        assert image.to_dict() | {"max_batch": None} == ours.to_dict()
    assert found.safety_identifier == "someone"
    assert found.usage is not None and found.usage.total_tokens == 0


def test_generate_returns_addresses_that_can_be_fetched(client: openai.OpenAI) -> None:
    found = client.images.generate(
        prompt=PROMPT,
        response_format="url",
        output_format="jpeg",
        output_compression=0,
        extra_body=SETTINGS,
    )
    assert found.data is not None
    with urllib.request.urlopen(found.data[0].url or "") as response:
        assert response.headers["Content-Type"] == "image/jpeg"
        assert Image.open(response).size == (128, 128)


def test_stream_sends_previews_and_then_the_image(
    client: openai.OpenAI, demo_pipe: Pipeline
) -> None:
    settings = SETTINGS | {"num_inference_steps": 12}
    picture = demo_pipe(PROMPT, **settings).images[0]
    with client.images.generate(
        prompt=PROMPT, stream=True, partial_images=2, extra_body=settings
    ) as stream:
        events = list(stream)
    *previews, last = events
    assert [each.type for each in previews] == ["image_generation.partial_image"] * 2
    assert [each.partial_image_index for each in previews] == [0, 1]
    assert last.type == "image_generation.completed" and last.usage.total_tokens == 0
    assert opened(last.b64_json).tobytes() == picture.tobytes()
    sizes = {opened(each.b64_json).size for each in events}
    assert sizes == {picture.size} and {each.size for each in events} == {"128x128"}
    errors = [np.abs(np.subtract(opened(e.b64_json), picture, dtype=float)).mean() for e in events]
    assert errors[0] > errors[1] > errors[2] == 0  # they come closer


def test_async_client_generates_and_streams(server: LiveServer, picture: Image.Image) -> None:
    async def run() -> tuple[str, list[str]]:
        async with openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0
        ) as client:
            found = await client.images.generate(prompt=PROMPT, extra_body=SETTINGS)
            stream = await client.images.edit(
                image=png(picture), prompt=PROMPT, stream=True, extra_body=SETTINGS
            )
            assert found.data is not None
            return found.data[0].b64_json or "", [event.type async for event in stream]

    text, kinds = asyncio.run(run())
    assert opened(text).tobytes() == picture.tobytes()
    assert kinds == ["image_edit.completed"]


def test_edit_changes_what_is_transparent_in_the_mask(
    client: openai.OpenAI, demo_pipe: Pipeline, picture: Image.Image
) -> None:
    box = (32, 40, 96, 104)
    settings = SETTINGS | {"guidance_scale": 4.5, "negative_prompt": "5"}
    found = client.images.edit(
        image=png(picture),
        mask=png(hole(picture.size, box)),
        prompt="a blue star",
        extra_body=settings,
    )
    mask = Image.new("L", picture.size)
    mask.paste(255, box)
    expected = demo_pipe(
        "a blue star", image=picture, mask_image=mask, paste_back=True, **settings
    ).images[0]
    assert found.data is not None
    assert opened(found.data[0].b64_json or "").tobytes() == expected.tobytes()


def test_edit_without_a_mask_takes_the_image_s_own_transparency(
    client: openai.OpenAI, picture: Image.Image
) -> None:
    box = (0, 0, 128, 64)
    image = picture.convert("RGBA")
    image.putalpha(hole(picture.size, box).getchannel("A"))
    found = client.images.edit(image=[png(image)], prompt="a blue star", extra_body=SETTINGS)
    assert found.data is not None
    result = np.asarray(opened(found.data[0].b64_json or ""))
    assert np.array_equal(result[64:], np.asarray(picture)[64:])
    assert not np.array_equal(result[:64], np.asarray(picture)[:64])


def test_edit_with_a_size_returns_that_size(client: openai.OpenAI, picture: Image.Image) -> None:
    found = client.images.edit(
        image=png(picture),
        mask=png(hole(picture.size, (0, 0, 64, 64))),
        prompt="a blue star",
        size="64x96",
        extra_body=SETTINGS,
    )
    assert found.data is not None and found.size == "64x96"
    assert opened(found.data[0].b64_json or "").size == (64, 96)


@pytest.mark.parametrize(
    ("arguments", "field", "message"),
    [
        ({"prompt": "x", "n": 0}, "n", "from 1 to 10"),
        ({"prompt": "x", "n": 9}, "n", "at most 8"),
        ({"prompt": "x", "size": "big"}, "size", "expected"),
        ({"prompt": "x", "size": "100x100"}, None, "multiple of 8"),
        ({"prompt": "x", "background": "transparent"}, "background", "opaque"),
        ({"prompt": "x", "quality": "hd"}, "quality", "num_inference_steps"),
        ({"prompt": "x", "style": "vivid"}, "style", "prompt"),
        ({"prompt": "x", "output_format": "gif"}, "output_format", "png, jpeg or webp"),
        ({"prompt": "x", "output_compression": 5}, "output_compression", "jpeg"),
        ({"prompt": "x", "partial_images": 1}, "partial_images", "stream"),
        ({"prompt": "x", "extra_body": {"sampler": "ddim"}}, None, "use scheduler"),
        ({"prompt": "x", "extra_body": {"num_inference_steps": "4"}}, None, "integer"),
        ({"prompt": "x", "extra_body": {"strength": 0.5, "image": "a.png"}}, "image", "edit"),
        ({"prompt": "x", "extra_body": {"num_images_per_prompt": 2}}, None, "use n"),
    ],
)
def test_generate_rejects_what_it_does_not_do(
    client: openai.OpenAI, arguments: dict[str, Any], field: str | None, message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        client.images.generate(**arguments)
    assert caught.value.param == field
    assert caught.value.type == "invalid_request_error"


def test_edit_rejects_files_that_do_not_fit(client: openai.OpenAI, picture: Image.Image) -> None:
    image = png(picture)
    for files, message in (
        ({"image": [image, image]}, "one image"),
        ({"image": ("a.png", b"nothing", "image/png")}, "image cannot be read"),
        ({"image": image, "mask": image}, "no transparency"),
        ({"image": image, "mask": png(hole((64, 64), (0, 0, 9, 9)))}, "size of the image"),
        ({"image": image, "markup": image}, "markup"),
        ({"image": image, "input_fidelity": "high"}, "strength"),
    ):
        with pytest.raises(openai.BadRequestError, match=message):
            client.images.edit(prompt="x", **files)


@pytest.mark.parametrize("charset", ["undefined", "punycode", '"unicode_escape"', "latin-1", "?"])
def test_edit_rejects_forms_in_another_encoding(server: LiveServer, charset: str) -> None:
    form = b'--x\r\nContent-Disposition: form-data; name="user"\r\n\r\n\\ud800\r\n--x--\r\n'
    kind = {"Content-Type": f"multipart/form-data; boundary=x; charset={charset}"}
    status, _, content = server.request("POST", "/v1/images/edits", form, kind)
    assert status == 400 and b"charset must be utf-8" in content


def test_wrong_key_and_full_queue_are_the_client_s_errors() -> None:
    with (
        live_server({"demo": PACKAGE_DIR}, api_keys=("secret",), max_queue=1) as server,
        client_of(server, "wrong") as stranger,
        client_of(server, "secret") as client,
    ):
        with pytest.raises(openai.AuthenticationError) as denied:
            stranger.models.list()
        assert denied.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            stranger.images.generate(prompt="x")
        streams = [
            client.images.generate(prompt="x", stream=True, partial_images=1, extra_body=LONG)
        ]
        wait_until(lambda: server.service.queue.running == 1)
        streams.append(client.images.generate(prompt="x", stream=True, extra_body=LONG))
        wait_until(lambda: server.service.queue.waiting == 1)
        with pytest.raises(openai.RateLimitError) as full:
            client.images.generate(prompt="x", extra_body=LONG)
        assert int(full.value.response.headers["Retry-After"]) >= 1
        for stream in streams:
            stream.close()
        wait_until(lambda: all(job.is_over for job in server.service.queue.jobs()))
        assert {job.status for job in server.service.queue.jobs()} == {CANCELLED}


def test_failure_in_a_stream_is_an_error_of_the_client(
    server: LiveServer, client: openai.OpenAI
) -> None:
    stream = client.images.generate(
        prompt="x", stream=True, partial_images=1, extra_body=LONG | {"timeout": 0.3}
    )
    with stream, pytest.raises(openai.APIError, match="not done within"):
        list(stream)
