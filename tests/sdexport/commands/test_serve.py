"""`sdexport serve`: options, what it needs before others can reach it, and how it ends."""

from __future__ import annotations

import builtins
import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from benchmarks import server as benchmark
from sdexport.cli import main
from sdexport.demo_model import PACKAGE_DIR
from tests.helpers.live_server import PATIENCE, wait_until

KEY = "a-key-that-is-long-enough"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["serve", *map(str, arguments)])


def assert_error(result: Result, *parts: str) -> None:
    assert result.exit_code == 1, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and all(part in lines[0] for part in parts), result.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_others_can_reach_the_server_with_a_key_alone(host: str) -> None:
    assert_error(call(PACKAGE_DIR, "--host", host), "--api-key-file")


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 40, f"{KEY}\nshort\n".encode()])
def test_keys_are_long_and_ascii(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    assert_error(call(PACKAGE_DIR, "--api-key-file", file), "keys of 16 or more ASCII")
    assert_error(call(PACKAGE_DIR, "--api-key-file", tmp_path / "none"), "none")


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def without(name: str, *arguments: Any, **further: Any) -> Any:
        if name.partition(".")[0] == "fastapi":
            raise ModuleNotFoundError("No module named 'fastapi'", name="fastapi")
        return imported(name, *arguments, **further)

    monkeypatch.setattr(builtins, "__import__", without)
    assert_error(call(PACKAGE_DIR), "the server needs fastapi", "pip install 'sdexport[serve]'")


def test_wrong_packages_are_named(tmp_path: Path) -> None:
    assert_error(call(tmp_path / "none"), str(tmp_path / "none"))
    result = call(f"a={PACKAGE_DIR}", f"a={PACKAGE_DIR}")
    assert result.exit_code == 2 and "two are called a" in result.stderr
    assert call(f"={PACKAGE_DIR}").exit_code == 2
    assert_error(call(PACKAGE_DIR, "--lora-dir", tmp_path / "none"), "--lora-dir")
    assert_error(call(PACKAGE_DIR, "--controlnet", f"a={PACKAGE_DIR}"), "expected the package of")


def test_an_address_that_is_taken_is_named() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert_error(call(PACKAGE_DIR, "--port", port), f"127.0.0.1:{port}")


class Serving:
    """`sdexport serve` in a process of its own."""

    def __init__(self, *arguments: object) -> None:
        # a pipe that nobody reads would stop it
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sdexport", "serve", *map(str, arguments), "--json"],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        assert self.process.stdout is not None
        text = ""
        while line := self.process.stdout.readline():
            text += line
            if line == "}\n":
                break
        else:
            raise AssertionError(self.log())
        self.ready = json.loads(text)

    def log(self) -> str:
        """What the server has written to stderr."""
        self._log.seek(0)
        return self._log.read()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()
        self._log.close()

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            self.ready["address"] + path,
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return json.loads(response.read())


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_sigterm_lets_jobs_end_and_takes_no_more() -> None:
    serving = Serving(f"demo={PACKAGE_DIR}", "--port", 0, "--log-format", "json", "--grace", 60)
    try:
        assert serving.ready["models"] == ["demo"] and serving.ready["pid"] == serving.process.pid
        body = {"prompt": "a star", "num_inference_steps": 40, "width": 64, "height": 64}
        job = serving.ask("POST", "/v1/jobs", body)
        wait_until(lambda: serving.ask("GET", job["url"])["step"] >= 1)
        serving.process.send_signal(signal.SIGTERM)

        def stopping() -> bool:
            try:
                serving.ask("POST", "/v1/jobs", body)
            except urllib.error.HTTPError as error:
                return error.code == 503
            except OSError:
                return True
            return False

        wait_until(stopping)
        output, _ = serving.process.communicate(timeout=PATIENCE)
        log = serving.log()
        assert serving.process.returncode == 143 and output == ""
        entries = [json.loads(line) for line in log.splitlines()]
        assert any("no more jobs are taken" in entry["message"] for entry in entries)
        posts = [e for e in entries if e["message"].startswith("POST /v1/jobs 202")]
        assert posts and len(posts[0]["request_id"]) == 32
        assert all(entry["level"] in ("info", "warning") for entry in entries), log
    finally:
        serving.end()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_second_ctrl_c_cancels_what_runs() -> None:
    serving = Serving(f"demo={PACKAGE_DIR}", "--port", 0, "--grace", 600)
    try:
        body = {"prompt": "a star", "num_inference_steps": 150, "num_images_per_prompt": 8}
        job = serving.ask("POST", "/v1/jobs", body)
        wait_until(lambda: serving.ask("GET", job["url"])["step"] >= 1)
        serving.process.send_signal(signal.SIGINT)
        wait_until(lambda: serving.process.poll() is None)
        serving.process.send_signal(signal.SIGINT)
        assert serving.process.wait(PATIENCE) == 130
        assert "Traceback" not in serving.log()
    finally:
        serving.end()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_kill_leaves_no_file_and_a_new_server_works() -> None:
    found = benchmark.killed()
    assert found["package_unchanged"] and found["files_left"] == []
    assert found["new_server_works"] and found["old_job_status"] == 404
    assert found["client_sees"] not in ("done", "failed", "cancelled")


@pytest.mark.slow
def test_many_clients_get_right_images_and_no_error_but_429() -> None:
    found = benchmark.many_clients(0.5)
    assert found["errors"] == found["wrong"] == 0, found
    assert found["images"] > benchmark.CLIENTS / 4


def test_the_command_line_starts_without_the_servers_libraries() -> None:
    code = (
        "import sys, sdexport, sdexport.cli\n"
        "print([m for m in ('fastapi', 'uvicorn', 'starlette', 'pydantic', 'asyncio') "
        "if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"
