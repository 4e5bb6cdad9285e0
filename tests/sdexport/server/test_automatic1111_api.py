"""AUTOMATIC1111's API, used with the package `webuiapi`."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webuiapi
from PIL import Image

from sdexport import ControlNet, Pipeline, load_pipeline, read_parameters
from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.demo_model import PACKAGE_DIR
from sdexport.server.automatic1111_lists import samplers, schedulers
from sdexport.server.automatic1111_sampler import sampler_arguments
from tests.helpers.live_server import LiveServer, live_server, wait_until
from tests.helpers.lora_files import ATTENTION, random_lora, save_peft
from tests.tolerances import IMAGE_ABS

PROMPT = "a large (red:1.2) circle"
SETTINGS: dict[str, Any] = {
    "prompt": PROMPT,
    "negative_prompt": "blue",
    "width": 128,
    "height": 128,
    "steps": 3,
    "seed": 5,
}
SAME: dict[str, Any] = {
    "prompt": PROMPT,
    "negative_prompt": "blue",
    "prompt_style": "automatic1111",
    "num_inference_steps": 3,
    "guidance_scale": 7.0,
    "scheduler": "euler_a",
    "schedule": "automatic",
    "noise_device": "cuda",
    "seed": 5,
}
"""The arguments of a pipeline call that give the image of SETTINGS."""


class Client(webuiapi.WebUIApi):
    """The client; its default for `alwayson_scripts` keeps what an earlier call has put in."""

    def txt2img(self, **fields: Any) -> Any:
        return super().txt2img(**{"alwayson_scripts": {}, **fields})

    def img2img(self, **fields: Any) -> Any:
        return super().img2img(**{"alwayson_scripts": {}, **fields})


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server({"demo": PACKAGE_DIR, "other": PACKAGE_DIR}) as running:
        yield running


@pytest.fixture
def client(server: LiveServer) -> Iterator[Client]:
    made = Client(port=server.port)
    before = made.get_options()
    yield made
    made.set_options(before)
    made.session.close()


@pytest.fixture(scope="module")
def picture(demo_pipe: Pipeline) -> Image.Image:
    image: Image.Image = demo_pipe(**SAME).images[0]
    return image


@pytest.fixture(scope="module")
def mask() -> Image.Image:
    made = Image.new("L", (128, 128))
    made.paste(255, (24, 40, 88, 96))
    return made


def fails(call: Any, *args: Any, **fields: Any) -> tuple[int, str]:
    """Status and text of the error that a call ends with."""
    with pytest.raises(RuntimeError) as caught:
        call(*args, **fields)
    return caught.value.args[0], caught.value.args[1]


def test_txt2img_returns_the_image_of_the_library(client: Client, picture: Image.Image) -> None:
    found = client.txt2img(**SETTINGS)
    assert found.image.tobytes() == picture.tobytes()
    assert found.info["infotexts"] == [found.image.info["parameters"]]
    assert found.info["seed"] == 5 and found.info["sampler_name"] == "Euler a"
    assert found.info["sd_model_name"] == "demo"
    assert found.parameters["steps"] == 3


def test_txt2img_counts_seeds_over_batches(client: Client, demo_pipe: Pipeline) -> None:
    found = client.txt2img(**SETTINGS, batch_size=2, n_iter=2)
    assert found.info["all_seeds"] == [5, 6, 7, 8]
    assert len(found.images) == len(found.info["infotexts"]) == len(found.info["all_prompts"]) == 4
    expected = demo_pipe(**SAME | {"seed": 8}).images[0]
    # a batch may round differently
    assert np.abs(np.subtract(found.images[3], expected, dtype=int)).max() <= IMAGE_ABS


def test_txt2img_draws_a_seed_and_says_which(client: Client) -> None:
    found = client.txt2img(**SETTINGS | {"seed": -1})
    again = client.txt2img(**SETTINGS | {"seed": found.info["seed"]})
    assert found.info["seed"] == read_parameters(found.image).seed != -1
    assert found.image.tobytes() == again.image.tobytes()


@pytest.mark.parametrize(
    ("fields", "arguments"),
    [
        ({"sampler_name": "DPM++ 2M", "scheduler": "Karras"}, {"scheduler": "dpm++_2m_karras"}),
        ({"sampler_name": "DPM++ 2M Karras"}, {"scheduler": "dpm++_2m", "schedule": "karras"}),
        ({"sampler_name": "DDIM"}, {"scheduler": "ddim", "eta": 1.0}),
        ({"sampler_name": "Euler", "s_churn": 4}, {"scheduler_options": {"s_churn": 4}}),
        ({"override_settings": {"randn_source": "CPU"}}, {"noise_device": "cpu"}),
        ({"override_settings": {"CLIP_stop_at_last_layers": 2}}, {"clip_skip": 1}),
    ],
)
def test_txt2img_names_mean_what_they_mean_in_the_web_ui(
    client: Client, demo_pipe: Pipeline, fields: dict[str, Any], arguments: dict[str, Any]
) -> None:
    named = SAME | {"scheduler": "euler"} if "s_churn" in fields else SAME
    named = {k: v for k, v in named.items() if not ("Karras" in str(fields) and k == "schedule")}
    found = client.txt2img(**SETTINGS | fields)
    assert found.image.tobytes() == demo_pipe(**named | arguments).images[0].tobytes()
    assert client.get_options()["CLIP_stop_at_last_layers"] == 1


def test_img2img_returns_the_image_of_the_library(
    client: Client, demo_pipe: Pipeline, picture: Image.Image
) -> None:
    found = client.img2img(images=[picture], denoising_strength=0.6, resize_mode=1, **SETTINGS)
    same = SAME | {"image": picture, "strength": 0.6, "resize_mode": "crop"}
    assert found.image.tobytes() == demo_pipe(**same).images[0].tobytes()
    assert found.parameters["init_images"] is None


def test_img2img_of_several_images(client: Client, picture: Image.Image) -> None:
    found = client.img2img(images=[picture, picture.rotate(180)], **SETTINGS)
    assert found.info["all_seeds"] == [5, 6]


def test_img2img_masks_mean_what_they_mean_in_the_web_ui(
    client: Client, demo_pipe: Pipeline, picture: Image.Image, mask: Image.Image
) -> None:
    fields = {**SETTINGS, "images": [picture], "mask_image": mask, "inpainting_fill": 1}
    same = SAME | {"image": picture, "mask_image": mask, "strength": 0.75, "mask_blur": 4.0}
    whole = client.img2img(**fields, inpaint_full_res=False)
    assert whole.image.tobytes() == demo_pipe(**same, paste_back=True).images[0].tobytes()
    part = client.img2img(**fields, inpaint_full_res_padding=8)
    assert part.image.tobytes() == demo_pipe(**same, padding_mask_crop=8).images[0].tobytes()
    inverted = client.img2img(**fields, inpaint_full_res=False, inpainting_mask_invert=1)
    expected = demo_pipe(**same, paste_back=True, mask_invert=True).images[0]
    assert inverted.image.tobytes() == expected.tobytes()


def test_img2img_fills_what_is_masked_and_keeps_the_rest(
    client: Client, picture: Image.Image, mask: Image.Image
) -> None:
    filled = client.img2img(images=[picture], mask_image=mask, mask_blur=0, **SETTINGS)
    kept = client.img2img(
        images=[picture], mask_image=mask, mask_blur=0, inpainting_fill=1, **SETTINGS
    )
    changed = (np.asarray(filled.image) != np.asarray(picture)).any(axis=2)
    assert changed.any() and not changed[np.asarray(mask) == 0].any()
    assert filled.image.tobytes() != kept.image.tobytes()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"enable_hr": True}, "enable_hr"),
        ({"restore_faces": True}, "restore_faces"),
        ({"tiling": True}, "tiling"),
        ({"save_images": True}, "save_images"),
        ({"subseed_strength": 0.5}, "subseed_strength"),
        ({"seed_resize_from_h": 64}, "seed_resize_from_h"),
        ({"styles": ["anime"]}, "'anime'"),
        ({"script_name": "X/Y/Z plot"}, "script_name"),
        ({"prompt": "<lora:style:1>"}, "has no LoRAs"),
        ({"prompt": "<hypernet:style:1>"}, "hypernet"),
        ({"negative_prompt": "<lora:style:1>"}, "negative_prompt"),
        ({"sampler_name": "DPM adaptive"}, "DPM adaptive"),
        ({"sampler_name": "Best"}, "'Best' is unknown"),
        ({"scheduler": "Best"}, "Best"),
        ({"eta": 0.5}, "eta"),
        ({"s_noise": 1.1}, "s_noise"),
        ({"sampler_name": "Heun", "s_churn": 3}, "s_churn"),
        ({"steps": 1000}, "num_inference_steps"),
        ({"steps": 3.5}, "steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -2, "batch_size": 2}, "seed must be -1 or more"),
        ({"n_iter": 9}, "at most 8"),
        ({"width": 100}, "width"),
        ({"override_settings": {"sd_model": "x"}}, "'sd_model'"),
        ({"override_settings": {"sd_model_checkpoint": "x"}}, "demo"),
        ({"alwayson_scripts": {"ADetailer": {"args": [True, {"ad_model": "x"}]}}}, "ADetailer"),
        ({"alwayson_scripts": {"Refiner": {"args": [True, "x", 0.8]}}}, "Refiner"),
    ],
)
def test_txt2img_rejects_what_it_does_not_do(
    client: Client, fields: dict[str, Any], message: str
) -> None:
    status, text = fails(client.txt2img, **SETTINGS | fields)
    assert status == 400 and message in text
    assert set(client.session.post(f"{client.baseurl}/txt2img", data="[").json()) == {
        *("error", "detail", "body", "errors")
    }


def test_scripts_that_are_off_may_be_there(client: Client, picture: Image.Image) -> None:
    off = {"ADetailer": {"args": [False]}, "ControlNet": {"args": [{"enabled": False}]}}
    assert client.txt2img(**SETTINGS, alwayson_scripts=off).image.tobytes() == picture.tobytes()


def test_options_select_the_model_and_unknown_ones_are_named(client: Client) -> None:
    titles = client.util_get_model_names()
    assert [title.split(" [")[0] for title in titles] == ["demo", "other"]
    client.util_set_model("other")
    assert client.util_get_current_model() == titles[1]
    assert client.txt2img(**SETTINGS).info["sd_model_name"] == "other"
    client.set_options(client.get_options())  # what GET shows can be sent back
    answer = client.set_options({"jpeg_quality": 50, "made_up": 1})
    assert "'made_up'" in answer["detail"]
    assert client.get_options()["jpeg_quality"] == 80  # nothing of it was applied
    assert "true or false" in client.set_options({"enable_pnginfo": "yes"})["detail"]


def test_options_of_a_request_can_be_kept(client: Client) -> None:
    format_ = {"samples_format": "webp", "enable_pnginfo": False}
    found = client.txt2img(**SETTINGS, override_settings=format_)
    assert found.image.format == "WEBP" and "exif" not in found.image.info
    assert client.get_options()["samples_format"] == "png"
    client.txt2img(
        **SETTINGS, override_settings=format_, override_settings_restore_afterwards=False
    )
    assert client.get_options()["samples_format"] == "webp"


def test_options_can_be_changed_by_many_at_once(server: LiveServer, client: Client) -> None:
    pairs = [{"jpeg_quality": i, "CLIP_stop_at_last_layers": i} for i in range(1, 9)]

    def change(options: dict[str, int]) -> None:
        for _ in range(5):
            assert server.json("POST", "/sdapi/v1/options", options) == (200, None)
            found = server.json("GET", "/sdapi/v1/options")[1]
            assert found["jpeg_quality"] == found["CLIP_stop_at_last_layers"]

    failed: list[BaseException] = []

    def run(options: dict[str, int]) -> None:
        try:
            change(options)
        except BaseException as error:  # noqa: BLE001  of the thread
            failed.append(error)

    threads = [threading.Thread(target=run, args=[options]) for options in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_lists_have_the_names_that_clients_read(client: Client, server: LiveServer) -> None:
    samplers = client.util_get_sampler_names()
    assert {"Euler a", "DPM++ 2M", "DPM++ 2M SDE", "DDIM", "UniPC"} <= set(samplers)
    assert {"automatic", "karras", "sgm_uniform"} <= set(client.util_get_scheduler_names())
    (first, _) = client.get_sd_models()
    assert first["title"] == f"demo [{first['sha256'][:10]}]" and first["filename"] == "demo"
    assert client.get_scripts() == {"txt2img": [], "img2img": []}
    assert client.get_embeddings() == {"loaded": {}, "skipped": {}}
    assert client.get_cmd_flags() and client.get_memory()["ram"]
    for items in (
        *(client.get_loras(), client.get_upscalers(), client.get_sd_vae()),
        *(client.get_latent_upscale_modes(), client.get_hypernetworks()),
        *(client.get_face_restorers(), client.get_realesrgan_models()),
        *(client.get_prompt_styles(), client.controlnet_model_list()),
    ):
        assert items == []
    assert client.refresh_checkpoints() is None
    assert client.controlnet_module_list() == ["none"] and client.controlnet_version()


def test_every_listed_sampler_is_accepted() -> None:
    fields = dict.fromkeys(("eta", "s_churn", "s_tmin", "s_tmax", "s_noise", "sampler_index"))
    for sampler in samplers():
        for name in (sampler["name"], *sampler["aliases"]):
            found = sampler_arguments(
                fields | {"sampler_name": name, "scheduler": None}, {"eta_ddim": 0.0}
            )
            assert found["schedule"] == "automatic"
    assert schedulers()[0]["name"] == "automatic"


def test_png_info_reads_the_settings(client: Client, picture: Image.Image) -> None:
    found = client.png_info(picture)
    assert found.info == picture.info["parameters"]
    assert found.parameters["Seed"] == "5" and found.parameters["Size-1"] == "128"
    assert found.parameters["Prompt"] == PROMPT
    assert client.png_info(Image.new("RGB", (8, 8))).parameters == {}


def test_what_is_missing_says_so(client: Client, picture: Image.Image) -> None:
    for call, argument in (
        (client.extra_single_image, picture),
        (client.extra_batch_images, [picture]),
        (client.interrogate, picture),
        (client.controlnet_detect, [picture]),
    ):
        status, text = fails(call, argument)
        assert status == 501 and "not supported" in text


@pytest.mark.parametrize(
    "image", ["", "https://example.org/a.png", "/etc/passwd", "AAAA", "data:image/png;base64,", 3]
)
def test_images_are_never_fetched_or_opened(server: LiveServer, image: Any) -> None:
    status, answer = server.json("POST", "/sdapi/v1/img2img", {"init_images": [image]})
    assert status == 400 and "init_images" in answer["detail"]
    assert server.json("POST", "/sdapi/v1/png-info", {"image": image})[0] == 400


def test_text_that_is_no_unicode_is_rejected(server: LiveServer) -> None:
    for body in (b'{"prompt": "\\ud800"}', b'{"\\udfff": 1}', b'{"prompt": "\xff"}'):
        for path in ("/sdapi/v1/txt2img", "/v1/images/generations"):
            assert server.request("POST", path, body)[0] == 400


def test_progress_shows_a_preview_and_interrupt_ends_the_request(
    server: LiveServer, client: Client
) -> None:
    results: list[Any] = []
    long = SETTINGS | {"steps": 150, "n_iter": 2, "batch_size": 4}

    def run() -> None:
        own = Client(port=server.port)
        results.append(own.txt2img(**long))
        own.session.close()

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: client.get_progress()["current_image"] is not None)
    progress = client.get_progress()
    preview = Image.open(io.BytesIO(base64.b64decode(progress["current_image"])))
    assert preview.size == (128, 128)
    assert 0 < progress["progress"] < 1 and progress["state"]["sampling_steps"] == 150
    assert progress["state"]["job_count"] == 2
    status, without = server.json("GET", "/sdapi/v1/progress?skip_current_image=true")
    assert status == 200 and without["current_image"] is None
    assert client.skip() == {}
    assert client.interrupt() == {}
    thread.join()
    assert results[0].images == [] and results[0].info["all_seeds"] == []
    client.util_wait_for_ready(0.01)
    assert client.get_progress()["state"]["job_count"] == 0


def test_key_is_the_password_of_basic_authentication() -> None:
    with live_server({"demo": PACKAGE_DIR}, api_keys=("secret",)) as server:
        client = Client(port=server.port, username="anyone", password="secret")
        assert client.util_get_current_model().startswith("demo")
        client.session.close()
        stranger = Client(port=server.port, username="anyone", password="wrong")
        assert fails(stranger.txt2img, **SETTINGS)[0] == 401
        stranger.session.close()


def test_loras_and_controlnets_by_their_names(
    lora_folder: Path, control_folder: Path, tmp_path: Path
) -> None:
    unet = Checkpoint.open(lora_folder / "checkpoint").load("unet")
    save_peft(tmp_path / "style.safetensors", random_lora({"unet": unet}, ATTENTION))
    package = lora_folder / "package"
    nets = {"edges": control_folder / "first"}
    fields = SETTINGS | {"width": 64, "height": 64, "prompt": "a circle <lora:style:0.5>"}
    control = Image.new("RGB", (64, 64), "white")
    unit = webuiapi.ControlNetUnit(image=control, model="edges [0123abcd]", weight=0.7)
    with live_server(
        {"small": package}, lora_dir=tmp_path, adapters={"controlnets": nets}
    ) as server:
        client = Client(port=server.port)
        assert [lora["name"] for lora in client.get_loras()] == ["style"]
        assert client.controlnet_model_list() == ["edges"]
        found = client.txt2img(**fields, controlnet_units=[unit])
        assert "'other'" in fails(client.txt2img, **fields | {"prompt": "<lora:other:1>"})[1]
        unit.module = "canny"
        assert "canny" in fails(client.txt2img, **fields, controlnet_units=[unit])[1]
        client.session.close()
    with load_pipeline(package, lora_dir=tmp_path) as pipeline:
        expected = pipeline(
            **SAME | {"prompt": fields["prompt"]},
            width=64,
            height=64,
            controlnets=[ControlNet(nets["edges"], control, scale=0.7)],
        )
    assert found.image.tobytes() == expected.images[0].tobytes()
