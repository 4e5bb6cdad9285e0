"""The files of the page, and the route with which it reads the settings of images."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from sdexport import Pipeline, save_image
from sdexport.server.page_routes import CONTENT_SECURITY_POLICY, page_files
from tests.helpers.live_server import LiveServer

LARGEST = 150_000
"""Bytes of the whole page, which nothing compresses."""


def scripts() -> dict[str, str]:
    return {name: text.decode() for name, text in page_files().items() if name.endswith(".js")}


def png(**texts: str) -> bytes:
    chunks, file = PngImagePlugin.PngInfo(), io.BytesIO()
    for key, text in texts.items():
        chunks.add_text(key, text)
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=chunks)
    return file.getvalue()


def settings(server: LiveServer, content: bytes) -> tuple[int, Any]:
    status, _, answer = server.request("POST", "/v1/image-settings", content)
    return status, json.loads(answer)


def test_page_has_all_files_that_it_names() -> None:
    home = page_files()["index.html"].decode()
    named = set(re.findall(r'(?:href|src)="page/([^"]+)"', home))
    for text in scripts().values():
        named |= set(re.findall(r'from "\./([^"]+)"', text))
    assert named | {"index.html"} == set(page_files())
    assert sum(map(len, page_files().values())) < LARGEST


def test_page_needs_no_inline_code_and_no_other_server() -> None:
    home = page_files()["index.html"].decode()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", home)
    for name, content in page_files().items():
        text = content.decode().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//cdn|@import", text), name
    risky = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|\beval\b|new Function")
    assert [name for name, text in scripts().items() if risky.search(text)] == []


def test_every_control_of_the_page_has_a_name() -> None:
    home = page_files()["index.html"].decode()
    labelled = set(re.findall(r'<label[^>]* for="([^"]+)"', home))
    for tag in re.findall(r"<(?:input|select|textarea)[^>]*>", home):
        own = re.search(r'\bid="([^"]+)"', tag)
        wrapped = re.search(r"<label[^>]*>[^<]*" + re.escape(tag), home)
        assert "aria-label=" in tag or wrapped or (own and own[1] in labelled), tag


def test_ids_that_scripts_use_exist() -> None:
    home = page_files()["index.html"].decode()
    ids = re.findall(r'\bid="([^"]+)"', home)
    assert len(ids) == len(set(ids))
    for name, text in scripts().items():
        used = set(re.findall(r'\$\("([\w-]+)"\)', text))
        assert used <= set(ids), (name, used - set(ids))


def test_page_is_served_with_a_strict_policy(server: LiveServer) -> None:
    for path, media_type in (("/", "text/html"), ("/page/page.js", "text/javascript")):
        status, headers, content = server.request("GET", path)
        assert status == 200
        assert headers["content-type"].startswith(media_type)
        assert headers["content-security-policy"] == CONTENT_SECURITY_POLICY
        assert headers["x-content-type-options"] == "nosniff"
        assert content
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert CONTENT_SECURITY_POLICY.startswith("default-src 'none'")


@pytest.mark.parametrize("name", ["nothing.js", "..%2fapp.py", "__init__.py", "page", "%00"])
def test_other_files_are_not_served(server: LiveServer, name: str) -> None:
    status, answer = server.json("GET", f"/page/{name}")
    assert status == 404
    assert "message" in answer["error"]


def test_settings_of_an_image_are_those_of_its_call(
    server: LiveServer, demo_pipe: Pipeline
) -> None:
    call = {"prompt": "a red circle", "seed": 2**63 + 1, "num_inference_steps": 2, "clip_skip": 1}
    file = io.BytesIO()
    save_image(demo_pipe(**call).images[0], file)
    status, found = settings(server, file.getvalue())
    assert status == 200
    assert call.items() <= found["settings"].items()
    assert found["not_understood"] == {}
    assert "negative_prompt" not in found["settings"]


def test_text_of_automatic1111_is_read(server: LiveServer) -> None:
    text = "a star\nSteps: 9, Sampler: Euler a, CFG scale: 4, Seed: 5, Size: 64x96, ENSD: 31337"
    status, found = settings(server, png(parameters=text))
    assert status == 200
    wanted = {"prompt": "a star", "scheduler": "euler_a", "seed": 5, "width": 64, "height": 96}
    assert wanted.items() <= found["settings"].items()
    assert "ENSD" in found["not_understood"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 100,
        b"<svg/>",
        png(),
        png()[:40],
        png(sdexport="{"),
        png(sdexport="[1]"),
        png(sdexport='{"prompt": 3}'),
        png(sdexport='{"prompt": "a", "seed": 1e999}'),
        png(sdexport="[" * 100_000),
    ],
    ids=range(10),
)
def test_damaged_files_have_an_error_in_one_line(server: LiveServer, content: bytes) -> None:
    status, answer = settings(server, content)
    assert status == 400
    assert answer["error"]["type"] == "invalid_request"
    assert "\n" not in answer["error"]["message"]


def test_text_that_is_no_unicode_is_sent_as_json(server: LiveServer) -> None:
    status, found = settings(server, png(sdexport='{"prompt": "a \\ud800 star"}'))
    assert status == 200
    assert found["settings"]["prompt"] == "a \ud800 star"
