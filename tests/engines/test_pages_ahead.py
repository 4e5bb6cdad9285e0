"""Memory whose pages another thread asks for; in processes of their own, whose heap changes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sdexport.engines import pages_ahead

HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
pytestmark = [
    pytest.mark.skipif(pages_ahead._library() is None, reason="glibc only"),
    pytest.mark.skipif(
        HUGE.exists() and "[always]" in HUGE.read_text(), reason="huge pages leave few faults"
    ),
]
BEGIN = """
import ctypes, resource, threading
from sdexport.commands.one_heap import use_one_heap
from sdexport.engines.process_memory import resident_mb
{enable}
from sdexport.engines import pages_ahead
pages_ahead.SMALLEST = 1
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.malloc.argtypes = library.free.argtypes = [ctypes.c_size_t]
library.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
SIZE, COUNT = 16 * 2**20, 4
def private():
    return resident_mb()["private_mb"]
def faults():
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
def fill(SIZE=SIZE, COUNT=COUNT):
    for thread in threading.enumerate():
        if thread.name == "sdexport-pages":
            thread.join()
    before, places = faults(), []
    for _ in range(COUNT):
        places.append(library.malloc(SIZE))
        library.memset(places[-1], 1, SIZE)
    return places, faults() - before
"""
PAGES = 4 * 16 * 2**20 // 4096


def run(script: str, *, enable: bool = True) -> str:
    code = BEGIN.format(enable="use_one_heap()" if enable else "") + script
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("enable", [True, False])
def test_thread_that_allocates_finds_the_pages_there(enable: bool) -> None:
    script = "with pages_ahead.pages_ahead(96 * 2**20):\n    print(fill()[1])"
    found = int(run(script, enable=enable))
    assert (found < PAGES / 8) is enable


def test_large_allocations_find_the_pages_there_too() -> None:
    found = run("with pages_ahead.pages_ahead(96 * 2**20):\n    print(fill(64 * 2**20, 1)[1])")
    assert int(found) < PAGES / 8


def test_what_is_not_used_or_freed_is_given_back() -> None:
    script = """
first = private()
with pages_ahead.pages_ahead(144 * 2**20):
    places, _ = fill()
    inside = private()
after = private()
for place in places[:-1]:  # the last one lies at the end of the heap
    library.free(place)
pages_ahead.give_back()
print(inside - first, after - first, private() - first)
"""
    inside, after, freed = map(float, run(script).split())
    assert inside > 120 and after < 100 and freed < 40


def test_few_pages_are_provided_that_nothing_uses() -> None:
    script = """
import time
first = private()
with pages_ahead.pages_ahead(1000 * 2**20):
    while private() - first < 170:
        time.sleep(0.01)
    time.sleep(0.2)
    unused = private() - first
    place = library.malloc(600 * 2**20)
    while private() - first < 800:
        time.sleep(0.01)
print(unused, private() - first)
"""
    unused, after = map(float, run(script).split())
    assert unused < 260 and after < 700


def test_blocks_at_the_same_time_and_failures_pass_through() -> None:
    script = """
try:
    with pages_ahead.pages_ahead(64 * 2**20), pages_ahead.pages_ahead(64 * 2**20):
        raise RuntimeError("no")
except RuntimeError as error:
    print(error, [t.name for t in threading.enumerate() if t.name == "sdexport-pages"])
with pages_ahead.pages_ahead(64 * 2**20):
    print(fill()[1] < 4096)
"""
    assert run(script).splitlines() == ["no []", "True"]


def test_nothing_is_asked_for_where_memory_is_short() -> None:
    script = """
pages_ahead.available_bytes = lambda: 100 * 2**20
with pages_ahead.pages_ahead(64 * 2**20):
    print(fill()[1])
"""
    assert int(run(script)) > PAGES / 2


def test_pages_that_were_provided_are_not_given_back_in_the_block() -> None:
    script = """
with pages_ahead.pages_ahead(96 * 2**20):
    for thread in threading.enumerate():
        if thread.name == "sdexport-pages":
            thread.join()
    pages_ahead.give_back()
    print(fill()[1])
"""
    assert int(run(script)) < PAGES / 8


def test_nothing_is_provided_if_no_thread_can_start() -> None:
    """The C library is set as before, and the next block works."""
    script = """
def fail(thread):
    raise RuntimeError("can't start new thread")
start, threading.Thread.start = threading.Thread.start, fail
with pages_ahead.pages_ahead(96 * 2**20):
    print(len(fill()[0]))
threading.Thread.start = start
end = pages_ahead._library().sbrk(0)
library.malloc(64 * 2**20)
print(pages_ahead._library().sbrk(0) == end)
with pages_ahead.pages_ahead(96 * 2**20):
    print(fill()[1])
"""
    count, is_mapped, faults = run(script).split()
    assert (count, is_mapped) == ("4", "True") and int(faults) < PAGES / 8


def test_heap_grows_by_what_is_asked_for_once_the_pages_are_used() -> None:
    script = """
sbrk, grown = pages_ahead._library().sbrk, []
with pages_ahead.pages_ahead(96 * 2**20):
    for _ in range(12):
        before = sbrk(0)
        library.malloc(31 * 2**20)
        grown.append(sbrk(0) - before)
print(max(grown) // 2**20)
"""
    assert 31 <= int(run(script)) < 40
