"""``bittensor conformance``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..errors import BackendError
from ..extras import MissingExtraError, extra
from .choices import WITHOUT_A_BACKEND, selected_backend
from .refusals import fail


class Profile(str, Enum):
    """How much the conformance suite tries."""

    DEV = "dev"
    CI = "ci"
    NIGHTLY = "nightly"


def conformance(
    backend: Annotated[
        list[str] | None,
        typer.Option(
            "--backend",
            "-b",
            metavar="NAME",
            help="Backend to test, with its variants, or one variant (cpp:avx2); may be repeated. " + WITHOUT_A_BACKEND,
        ),
    ] = None,
    profile: Annotated[
        Profile,
        typer.Option(help="dev: quick. ci: the same examples in every run. nightly: random, many examples."),
    ] = Profile.DEV,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", dir_okay=False, help="Write the results to FILE, as JSON.")
    ] = None,
    badge: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, help="Write a badge to FILE, .svg or .json. Not with -k."),
    ] = None,
    keyword: Annotated[
        str | None,
        typer.Option("--keyword", "-k", metavar="EXPR", help="Run only checks whose name matches EXPR, as pytest -k."),
    ] = None,
    expected_failures: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Known failures as JSON {check: reason}. One that passes, or names no check, is an error.",
        ),
    ] = None,
    max_examples: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Examples of each property, instead of the profile's number.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(metavar="M", help="With nightly: search for so long, with any number of examples.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Targets tested at the same time; by default the processors.")
    ] = None,
) -> None:
    """Hold installed backends against docs/numerics.md.

    Exit status: 0 if all that the backends declare was tested and holds, or all that -k selects of it; 1 if a check
    failed; 2 if the arguments are wrong or something was not run, or if FILE cannot be written and nothing failed.
    """
    names = backend or [selected_backend()]
    try:
        with extra("conformance", "the conformance suite", ("hypothesis", "numpy", "pytest")):
            from bittensor_conformance.runner import run

            status = run(
                names,
                profile=profile.value,
                report=report,
                badge=badge,
                keyword=keyword,
                expected_failures=expected_failures,
                max_examples=max_examples,
                minutes=minutes,
                jobs=jobs,
            )
    except (BackendError, MissingExtraError) as error:
        fail(str(error))
    raise typer.Exit(status)
