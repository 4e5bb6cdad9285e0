"""Runs of built files are recorded for the block that computes, and for no other."""

from __future__ import annotations

import threading

from sdexport.engines.run_record import note_run, note_runs, recorded_runs


def test_only_built_files_are_recorded() -> None:
    note_run("unet", "plan")  # nothing records it
    with recorded_runs() as ran:
        note_run("unet", "")
        note_run("vae_decoder", "prepared")
    note_run("unet", "plan")
    assert ran == {"vae_decoder"}


def test_a_block_inside_has_its_own_record() -> None:
    with recorded_runs() as outer:
        with recorded_runs() as inner:
            note_run("text_encoder", "plan")
        assert not outer
        note_runs(inner)
        note_run("unet", "plan")
    assert (outer, inner) == ({"text_encoder", "unet"}, {"text_encoder"})


def test_other_threads_are_not_recorded() -> None:
    with recorded_runs() as ran:
        thread = threading.Thread(target=note_run, args=("unet", "plan"))
        thread.start()
        thread.join()
    assert not ran
