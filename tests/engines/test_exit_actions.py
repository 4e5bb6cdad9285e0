"""Actions of threads that end before their blocks do."""

from __future__ import annotations

import threading

from sdexport.engines.exit_actions import Actions


def test_actions_run_newest_first_or_those_of_one_thread() -> None:
    actions, ran, other = Actions(), list[str](), list[int]()

    def add() -> None:
        other.append(threading.get_ident())
        actions.add(lambda: ran.append("other"))

    with actions.during(lambda: ran.append("first")), actions.during(lambda: ran.append("own")):
        thread = threading.Thread(target=add)
        thread.start()
        thread.join()
        actions.run(threading.get_ident())
        assert ran == ["own", "first"]
        ran.clear()
        actions.run(other[0])
        assert ran == ["other"]
        ran.clear()
        actions.run()
        assert ran == ["other", "own", "first"]
    ran.clear()
    actions.run()
    assert ran == ["other"]
