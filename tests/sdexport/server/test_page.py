"""The page of the server, as people use it: in a browser, with the demo model."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdexport import read_parameters, save_image
from tests.helpers.browser import Visit, running_browser, serious_problems
from tests.helpers.live_server import LiveServer, live_server, wait_until

KEY = "a-key-for-the-tests-of-the-page"
CIRCLE = "a large red circle on a white background"
READY = "#gallery a.button"
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
DESKTOP = {"viewport": {"width": 1280, "height": 860}}
Open = Callable[..., Visit]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with running_browser() as browser:
        yield browser


@pytest.fixture
def visit(browser: Any, server: LiveServer) -> Iterator[Open]:
    """Opens pages, and checks at the end that none had an error or called another server."""
    visits: list[Visit] = []

    def opened(port: int = server.port, **options: Any) -> Visit:
        visits.append(Visit(browser, f"http://127.0.0.1:{port}/", **(DESKTOP | options)))
        return visits[-1]

    yield opened
    faults = [fault for each in visits for fault in each.faults]
    for each in visits:
        each.context.close()
    assert faults == []


def generate(page: Any, prompt: str = CIRCLE, steps: int = 2, **fields: object) -> None:
    """Fill in the form, generate, and wait for the images."""
    for name, value in {"prompt": prompt, "num_inference_steps": steps, **fields}.items():
        page.fill(f"#{name}", str(value))
    page.click("#generate")
    page.wait_for_selector("#generate:visible")
    page.wait_for_selector(READY)


def sent(page: Any) -> dict[str, Any]:
    """The request for images that Generate sends, which is answered as usual."""
    with page.expect_request(lambda request: request.url.endswith("/v1/jobs")) as found:
        page.click("#generate")
    page.wait_for_selector("#generate:visible")
    body: dict[str, Any] = json.loads(found.value.post_data)
    return body


def picture(data_url: str) -> np.ndarray:
    """The pixels of an image in a request."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data_url.split(",")[1]))).convert("L"))


def values(page: Any, *names: str) -> list[str]:
    return [page.input_value(f"#{name}") for name in names]


def error_of(page: Any, field: str) -> str:
    """The error that is shown next to a field, and that screen readers read with it."""
    control = page.locator(f"#{field}")
    assert control.get_attribute("aria-invalid") == "true"
    text: str = page.text_content(f"#{control.get_attribute('aria-describedby')}")
    return text


def test_page_generates_with_previews_and_keeps_settings(visit: Open, tmp_path: Path) -> None:
    page = visit().ready()
    page.evaluate(
        """() => {
          window.previews = new Set();
          new MutationObserver(() => {
            const shown = document.querySelector("#gallery img.preview");
            if (shown) window.previews.add(shown.src);
          }).observe(document.querySelector("#gallery"),
            { subtree: true, childList: true, attributes: true });
        }"""
    )
    page.fill("#prompt", CIRCLE)
    page.fill("#num_inference_steps", "20")
    page.fill("#seed", "18446744073709551614")  # more than a number in JavaScript holds
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(READY)
    assert page.evaluate("window.previews.size") >= 3
    assert page.text_content("#live") == "The image is ready."
    with page.expect_download() as download:
        page.click(READY)
    saved = tmp_path / download.value.suggested_filename
    download.value.save_as(saved)
    found = read_parameters(saved)
    assert (found.prompt, found.num_inference_steps) == (CIRCLE, 20)
    assert found.seed == 2**64 - 2

    assert page.locator("#history li").count() == 1
    page.fill("#prompt", "another prompt")
    page.fill("#seed", "")
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert values(page, "prompt", "seed") == ["another prompt", ""]
    page.click("#history .thumb")
    assert values(page, "prompt", "seed", "num_inference_steps") == [CIRCLE, str(2**64 - 2), "20"]
    page.click("#toast button:has-text('Undo')")
    assert page.input_value("#prompt") == "another prompt"
    page.click("#history-clear")
    page.click("#confirm-dialog button:has-text('Clear')")
    page.wait_for_selector("#history-empty:visible")
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert page.locator("#history li").count() == 0


def test_page_cancels_within_a_step(visit: Open) -> None:
    page = visit().ready()
    page.fill("#prompt", CIRCLE)
    page.fill("#num_inference_steps", "150")
    page.fill("#width", "256")
    page.fill("#height", "256")
    page.click("#generate")
    page.wait_for_selector("#progress-label:has-text('Step')")
    assert page.locator("#generate").is_hidden()
    page.keyboard.press("Escape")
    page.wait_for_selector("#toast:has-text('Cancelled')")
    assert page.locator("#generate").is_visible()
    assert page.locator("#history li").count() == 0
    generate(page, width="", height="")  # the server takes the next job


def test_place_in_the_queue_is_shown(visit: Open, server: LiveServer) -> None:
    page = visit().ready()
    body = {"prompt": CIRCLE, "num_inference_steps": 150, "width": 256, "height": 256}
    url = server.json("POST", "/v1/jobs", body)[1]["url"]
    wait_until(lambda: server.json("GET", url)[1]["status"] == "running")
    page.fill("#prompt", CIRCLE)
    page.fill("#num_inference_steps", "1")
    page.click("#generate")
    page.wait_for_selector("#progress-label:has-text('next in the queue')")
    server.request("DELETE", url)
    page.wait_for_selector(READY)


def test_mask_is_drawn_and_used(visit: Open, tmp_path: Path) -> None:
    page = visit().ready()
    Image.new("RGB", (128, 128), "white").save(tmp_path / "white.png")
    page.click("#image-section summary")
    page.set_input_files("#image-input input[type=file]", tmp_path / "white.png")
    page.wait_for_selector("#mask-draw")
    page.click("#mask-draw")
    box = page.locator("#mask-canvas").bounding_box()
    x, y = box["x"] + box["width"] / 4, box["y"] + box["height"] / 4
    for shift in (0, box["width"] / 2):  # two strokes
        page.mouse.move(x + shift, y)
        page.mouse.down()
        page.mouse.move(x + shift, y + box["height"] / 2, steps=4)
        page.mouse.up()
    page.click("#mask-undo")
    page.click("#mask-done")
    page.wait_for_selector("#image-input .mask-overlay")
    page.fill("#prompt", "a blue background")
    page.fill("#num_inference_steps", "3")
    body = sent(page)
    mask = picture(body["mask_image"])
    assert mask.shape == (128, 128)
    assert set(np.unique(mask)) == {0, 255}
    assert mask[64, 32] == 255
    assert mask[64, 96] == 0  # undone
    assert picture(body["image"]).min() == 255
    page.wait_for_selector(READY)

    page.click("#mask-draw")  # again, with the keyboard, on what is there
    page.click("#tool-eraser")
    page.focus("#mask-canvas")
    for key in ["ArrowLeft"] * 8 + [" ", "ArrowDown", " "]:
        page.keyboard.press(key)
    page.click("#mask-done")
    page.wait_for_selector("#mask-dialog", state="hidden")
    erased = picture(sent(page)["mask_image"])
    assert erased[66, 32] == 0
    assert 0 < (erased == 255).sum() < (mask == 255).sum()


def stroke(page: Any, pointer: str, *points: tuple[float, float], button: str = "left") -> None:
    """Draw with a finger ("touch") or a pen, as the browser gets it from the device."""
    session = page.context.new_cdp_session(page)
    for index, (x, y) in enumerate([*points, points[-1]]):
        is_last = index == len(points)
        if pointer == "touch":
            kind = "touchEnd" if is_last else "touchMove" if index else "touchStart"
            places = [] if is_last else [{"x": x, "y": y}]
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})
            continue
        kind = "mouseReleased" if is_last else "mouseMoved" if index else "mousePressed"
        event = {"type": kind, "x": x, "y": y, "button": button, "buttons": int(not is_last)}
        pen = {"pointerType": "pen", "force": 0.5, "clickCount": 1}
        session.send("Input.dispatchMouseEvent", event | pen)
    session.detach()


@pytest.mark.parametrize("pointer", ["touch", "pen"])
def test_mask_is_drawn_with_finger_and_pen(visit: Open, tmp_path: Path, pointer: str) -> None:
    page = visit(**PHONE).ready()
    Image.new("RGB", (128, 128), "white").save(tmp_path / "white.png")
    page.tap("#image-section summary")
    page.set_input_files("#image-input input[type=file]", tmp_path / "white.png")
    page.tap("#mask-draw")
    box = page.locator("#mask-canvas").bounding_box()

    def place(x: float, y: float) -> tuple[float, float]:
        return box["x"] + box["width"] * x, box["y"] + box["height"] * y

    scrolled = "[scrollY, document.querySelector('#mask-dialog').scrollTop]"
    before = page.evaluate(scrolled)
    stroke(page, pointer, *(place(0.25, 0.25 + step / 16) for step in range(9)))
    assert page.evaluate(scrolled) == before  # it draws, and moves nothing
    stroke(page, pointer, place(0.75, 0.75))  # a dot
    page.evaluate(
        """() => {  // the hand next to a pen, or a second finger
          const canvas = document.querySelector("#mask-canvas");
          const box = canvas.getBoundingClientRect();
          const send = (type, id, x, more = {}) => canvas.dispatchEvent(new PointerEvent(type, {
            pointerId: id, isPrimary: true, bubbles: true, clientX: box.left + box.width * x,
            clientY: box.top + box.height / 2, movementX: 1, ...more,
          }));
          canvas.setPointerCapture = () => {};  // these pointers do not exist
          send("pointerdown", 71, 0.4, { pointerType: "pen" });
          send("pointerdown", 72, 0.9, { pointerType: "touch" });
          send("pointermove", 72, 0.95, { pointerType: "touch" });
          send("pointerup", 72, 0.95, { pointerType: "touch" });
          send("pointermove", 71, 0.5, { pointerType: "pen" });
          send("pointerup", 71, 0.5, { pointerType: "pen" });
          send("pointerdown", 73, 0.25, { pointerType: "pen", button: 5, buttons: 32 });
          send("pointerup", 73, 0.25, { pointerType: "pen", button: 5 });
        }"""
    )
    page.tap("#mask-done")
    page.wait_for_selector("#image-input .mask-overlay")
    page.fill("#prompt", "a blue background")
    page.fill("#num_inference_steps", "1")
    mask = picture(sent(page)["mask_image"]) == 255
    assert mask[36, 32] and mask[92, 32] and mask[96, 96]  # (row, column)
    assert mask[64, 52] and mask[64, 62] and not mask[64, 116]  # the pen's, and not the hand's
    assert not mask[64, 32]  # the pen's eraser


@pytest.fixture
def patient(demo_package: Path) -> Iterator[LiveServer]:
    """A server that waits for a page that is loaded anew, however busy the machine is."""
    with live_server({"demo": demo_package}, reconnect_seconds=300.0) as live:
        yield live


def test_a_job_is_taken_up_again_after_a_reload(
    visit: Open, patient: LiveServer, tmp_path: Path
) -> None:
    seen = visit(patient.port)
    page = seen.ready()
    Image.new("RGB", (128, 128), "white").save(tmp_path / "white.png")
    page.click("#image-section summary")
    page.set_input_files("#image-input input[type=file]", tmp_path / "white.png")
    page.fill("#prompt", CIRCLE)
    page.fill("#num_inference_steps", "150")
    page.fill("#strength", "1")
    page.click("#generate")
    page.wait_for_selector("#progress-label:has-text('Step')")
    page.fill("#prompt", "the next one")
    page.reload()
    page.wait_for_selector("#progress-label:has-text('Step')")
    assert page.is_visible("#cancel") and page.is_hidden("#generate")
    assert page.input_value("#prompt") == "the next one"
    page.wait_for_selector(READY)
    assert len(patient.service.queue.jobs()) == 1
    page.click("#history .thumb")
    assert page.input_value("#prompt") == CIRCLE
    assert page.is_visible("#image-input .chosen")  # also the image that it began with

    page.click("#generate")
    page.wait_for_selector("#progress-label:has-text('Step')")
    page.reload()
    page.wait_for_selector("#progress-label:has-text('Step')")
    page.keyboard.press("Escape")
    page.wait_for_selector("#toast:has-text('Cancelled')")
    assert patient.service.queue.jobs()[-1].status == "cancelled"
    page.reload()
    seen.ready()
    assert page.is_hidden("#progress") and page.is_visible("#generate")


def test_a_job_that_is_gone_after_a_reload_is_said_to_be(visit: Open) -> None:
    page = visit().ready()
    page.evaluate("sessionStorage.setItem('sdexport.job', 'of-another-server')")
    page.reload()
    page.wait_for_selector("#problem:has-text('no such job')")
    generate(page)
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert page.is_hidden("#problem")


def test_settings_of_a_file_are_restored(visit: Open, tmp_path: Path) -> None:
    page = visit().ready()
    generate(page, seed=7, negative_prompt="blue", guidance_scale=3.5, width=64, height=96)
    with page.expect_download() as download:
        page.click(READY)
    page.click("#reset")
    for name in ("prompt", "negative_prompt"):
        page.fill(f"#{name}", "")
    transfer = page.evaluate_handle(
        """text => {
          const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
          const transfer = new DataTransfer();
          transfer.items.add(new File([bytes], "image.png", { type: "image/png" }));
          return transfer;
        }""",
        base64.b64encode(Path(download.value.path()).read_bytes()).decode(),
    )
    page.dispatch_event("#stage", "drop", {"dataTransfer": transfer})
    page.wait_for_selector("#toast:has-text('restored')")
    names = ("prompt", "negative_prompt", "seed", "guidance_scale", "width", "height")
    assert values(page, *names) == [CIRCLE, "blue", "7", "3.5", "64", "96"]
    assert page.locator("#problem").is_hidden()

    image = Image.new("RGB", (64, 64))
    image.info["parameters"] = (
        "a <lora:style:0.8> star\nNegative prompt: red\n"
        "Steps: 9, Sampler: Euler a, Schedule type: Karras, CFG scale: 4, Seed: 5, Size: 64x64, "
        "Clip skip: 2, Model: elsewhere, ENSD: 31337"
    )
    save_image(image, tmp_path / "automatic1111.png")
    page.set_input_files("#settings-file", tmp_path / "automatic1111.png")
    page.wait_for_selector("#problem:visible")
    assert values(page, "seed", "num_inference_steps", "scheduler") == ["5", "9", "euler_a"]
    assert "clip_skip" in page.input_value("#more")
    said = page.text_content("#problem")
    assert "elsewhere" in said
    assert "ENSD" in said

    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    page.set_input_files("#settings-file", tmp_path / "broken.png")
    page.wait_for_selector("#problem:has-text('broken.png')")
    assert page.input_value("#seed") == "5"


def test_errors_are_shown_at_their_fields(visit: Open, tmp_path: Path) -> None:
    page = visit().ready()
    page.fill("#prompt", CIRCLE)
    page.fill("#width", "100")
    page.fill("#seed", "seven")
    page.fill("#num_inference_steps", "9999")
    page.click("#generate")
    assert "150" in error_of(page, "num_inference_steps")
    assert "multiple of 8" in error_of(page, "width")
    assert "whole number" in error_of(page, "seed")
    for name in ("width", "seed", "num_inference_steps"):
        page.fill(f"#{name}", "")
        assert page.get_attribute(f"#{name}", "aria-invalid") is None

    page.click("#more-section summary")
    page.fill("#more", "[")
    page.click("#generate")
    assert "JSON" in error_of(page, "more")
    page.fill("#more", '{"clip_skip": 99}')  # which the server rejects
    page.click("#generate")
    page.wait_for_selector("#more[aria-invalid]")
    assert "clip_skip" in error_of(page, "more")
    page.fill("#more", "")

    (tmp_path / "text.png").write_text("no image")
    page.click("#image-section summary")
    page.set_input_files("#image-input input[type=file]", tmp_path / "text.png")
    page.wait_for_selector("#image-section .error:has-text('text.png')")
    assert page.locator("#history li").count() == 0
    generate(page)


def test_batch_has_a_seed_for_each_image(visit: Open) -> None:
    page = visit().ready()
    generate(page, seed=4, num_images_per_prompt=2)
    assert page.locator("#gallery .tile").count() == 2
    assert page.locator("#gallery .facts").all_text_contents() == [
        "128 × 128Seed 4",
        "128 × 128Seed 5",
    ]
    page.click("#history .thumb >> nth=0")  # the newest, which is the second
    assert values(page, "seed", "num_images_per_prompt") == ["5", ""]
    assert page.locator("#history li").count() == 2


def test_key_is_asked_for_and_forgotten_with_the_tab(visit: Open, demo_package: Path) -> None:
    with live_server({"demo": demo_package}, api_keys=(KEY,)) as closed:
        seen = visit(closed.port)
        page = seen.page
        page.fill("#key", "wrong")
        page.click("#key-form button")
        page.wait_for_selector("#key-error:visible")
        page.fill("#key", KEY)
        page.click("#key-form button")
        generate(seen.ready())
        page.reload()
        seen.ready()
        assert page.locator("#key-dialog").is_hidden()
        assert page.evaluate("Object.values(localStorage).join()").count(KEY) == 0


@pytest.mark.parametrize(("theme", "options"), [("light", DESKTOP), ("dark", PHONE)])
def test_page_is_accessible(visit: Open, theme: str, options: dict[str, Any]) -> None:
    page = visit(color_scheme=theme, **options).ready()
    assert serious_problems(page) == []
    for section in page.locator("#form details").all():
        section.evaluate("section => { section.open = true; }")
    page.fill("#width", "100")
    page.click("#generate")
    assert serious_problems(page) == []
    generate(page, width="")
    page.click(".about summary")
    assert page.locator(".about dd").all_text_contents()[:2] == [CIRCLE, "demo"]
    page.click(".tools button:has-text('Edit')")
    page.wait_for_selector("#mask-draw")
    assert serious_problems(page) == []
    page.click("#mask-draw")
    assert serious_problems(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_long_names_do_not_widen_the_form(browser: Any, demo_package: Path, tmp_path: Path) -> None:
    (tmp_path / f"{'long-name-' * 12}.safetensors").touch()
    with live_server({"demo": demo_package}, lora_dir=tmp_path) as live:
        for options in (DESKTOP, PHONE):
            page = Visit(browser, f"http://127.0.0.1:{live.port}/", **options).ready()
            width = "document.querySelector('.compose').getBoundingClientRect().width"
            before = page.evaluate(width)
            page.click("#lora-section summary")
            page.click("#lora-add")
            assert page.evaluate(width) == before
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            page.context.close()


def test_theme_is_kept(visit: Open) -> None:
    page = visit(color_scheme="light").ready()
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.click("#theme")
    dark = page.evaluate(ground)
    page.reload()
    assert page.evaluate(ground) == dark != light
    assert page.get_attribute("#theme", "aria-pressed") == "true"
