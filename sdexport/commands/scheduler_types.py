"""Option values that choose a scheduler, and their completion in the shell."""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import CompletionItem


class SchedulerType(click.ParamType[str]):
    """A scheduler's name, or a file of its configuration; it is checked when it is used."""

    name = "NAME|FILE"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from sdexport.runtime.schedulers.program_names import DIFFUSERS, PRESETS, PROGRAMS

        if "/" in incomplete or incomplete.startswith("."):
            return [CompletionItem(incomplete, type="file")]
        names = dict.fromkeys([*PROGRAMS[DIFFUSERS].values(), *PRESETS])
        names |= dict.fromkeys(name for each in PROGRAMS.values() for name in each)
        return _starting_with(incomplete, names)


class ScheduleType(click.ParamType[str]):
    """A schedule's name; it is checked when it is used."""

    name = "NAME"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from sdexport.runtime.schedulers.schedule_names import AUTOMATIC, KEYS

        return _starting_with(incomplete, [AUTOMATIC, *KEYS])


class SchedulerOptionType(click.ParamType[tuple[str, Any]]):
    """KEY=VALUE, with a value of the option's type."""

    name = "KEY=VALUE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        from sdexport.engines.errors import InvalidArgumentError
        from sdexport.runtime.schedulers.scheduler_options import parse_option

        key, equals, text = str(value).partition("=")
        if not equals:
            self.fail(f"{value!r}: expected KEY=VALUE, such as solver_order=3", param, ctx)
        try:
            return key.strip(), parse_option(key.strip(), text)
        except InvalidArgumentError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from sdexport.runtime.schedulers.scheduler_options import option_types

        return _starting_with(incomplete, [f"{name}=" for name in option_types()])


def _starting_with(text: str, names: Any) -> list[CompletionItem]:
    """The names that begin with a text, in any case."""
    lowered = text.casefold()
    return [CompletionItem(name) for name in names if name.casefold().startswith(lowered)]


def into_scheduler_options(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Collect --scheduler-option and the options for one key each as scheduler_options.

    Raises: click.UsageError: a key has two values.
    """
    pairs = value if param.multiple else [(str(param.name), value)]
    for key, given in pairs:
        if given is None:
            continue
        found = ctx.params.setdefault("scheduler_options", {})
        if found.setdefault(key, given) != given:
            raise click.UsageError(f"{key} is both {found[key]} and {given}; give one of them", ctx)


SCHEDULER_OPTIONS = (
    click.option(
        "--scheduler",
        type=SchedulerType(),
        help="By any program's name, such as euler_a or 'DPM++ 2M Karras', or a "
        "scheduler_config.json; `sdexport schedulers` lists them. Default the package's own.",
    ),
    click.option(
        "--schedule",
        type=ScheduleType(),
        help="How the noise levels are spaced, such as karras, sgm_uniform, beta or trailing.",
    ),
    click.option(
        "--timestep-spacing",
        type=click.Choice(["linspace", "leading", "trailing"], case_sensitive=False),
        callback=into_scheduler_options,
        expose_value=False,
        help="Instead of the package's; trailing for SDXL Turbo and Lightning.",
    ),
    click.option(
        "--prediction-type",
        type=click.Choice(["epsilon", "v_prediction", "sample"], case_sensitive=False),
        callback=into_scheduler_options,
        expose_value=False,
        help="What the UNet predicts, if the package says something else.",
    ),
    click.option(
        "--scheduler-option",
        type=SchedulerOptionType(),
        multiple=True,
        callback=into_scheduler_options,
        expose_value=False,
        help="A key of the scheduler's configuration, such as solver_order=3, or an argument, "
        "such as s_churn=4. Repeatable.",
    ),
)
