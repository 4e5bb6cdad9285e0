"""Every scenario by its name."""

from __future__ import annotations

from tests.faults.engine_scenarios import engine_scenarios
from tests.faults.file_scenarios import file_scenarios
from tests.faults.package_scenarios import package_scenarios
from tests.faults.scenario import Scenario

SCENARIOS: dict[str, Scenario] = {**file_scenarios(), **engine_scenarios(), **package_scenarios()}
