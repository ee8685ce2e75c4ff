"""The first run of a new model: data, train, promote, score and monitor, in this process.

The champion is made by the gate, as always. What ends early leaves the model's folder and everything that was written;
the remaining commands are printed.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer
from rich.text import Text

from perennial.cli import predictions, terminal
from perennial.core import progress
from perennial.core.errors import PerennialError
from perennial.core.settings import settings
from perennial.spec import catalog
from perennial.spec.model_spec import ModelSpec
from perennial.steps import dispatch
from perennial.storage import delta_tables, landing, manifests

__all__ = ["FirstRun", "Step", "offer", "plan", "run"]

#: Partitions that are scored: the latest ones that have this many rows together, but no more partitions than these.
SCORED_ROWS, SCORED_PARTITIONS = 100, 31
#: Predictions that are printed.
SHOWN_PREDICTIONS = 5
#: Seconds to wait for MLflow's answer before the training starts.
MLFLOW_SECONDS = 5.0
#: Why a training is requested, for the ledger.
REASON = "the first model"


@dataclass(frozen=True)
class Step:
    """One step of the first run.

    Attributes:
        name: name of the step.
        title: what it does, in a few words.
        arguments: its arguments, without the actor.
        optional: whether the others are done even if it fails.
    """

    name: str
    title: str
    arguments: dict[str, str]
    optional: bool = False

    def command(self, model: str) -> str:
        """The command that runs the step."""
        if self.name == "check":
            return f"perennial check {model}"
        options = [
            f"--{name.replace('_', '-')} {shlex.quote(value)}" for name, value in self.arguments.items()
        ]
        return f"perennial run {self.name} --model {model} {' '.join(options)}"


def plan(first: str, last: str, scored_from: str | None = None) -> list[Step]:
    """The steps of the first run.

    Args:
        first: first partition of the sample.
        last: last partition of the sample.
        scored_from: first partition that is scored; the last one by default.
    """
    scored = {"start": scored_from or last, "end": last}
    if scored["start"] == last:
        del scored["end"]
    return [
        Step("data", "validate and publish the sample", {"start": first, "end": last}),
        Step("train", "train and evaluate a challenger", {"as_of": last, "reason": REASON}),
        Step("promote", "make it champion if it passed the gate", {"as_of": last}),
        Step("score", "predict with the champion", scored),
        Step("monitor", "write the first monitoring report", {"as_of": last}, optional=True),
    ]


def _print_commands(spec: ModelSpec, steps: list[Step]) -> None:
    """Print the command of each step, where files land, and how to read the predictions."""
    console, rows = terminal.console(), [(step.command(spec.name), step.title) for step in steps]
    if any(step.name == "score" for step in steps):
        rows.append((_predictions_command(spec, steps), "print the predictions; --out FILE.csv exports them"))
    width = max(len(command) for command, _ in rows)
    for command, title in rows:
        console.print(Text(f"  {command:<{width}}  # {title}"), soft_wrap=True)


def _print_places(spec: ModelSpec) -> None:
    """Print where the files of the feed land, and where what is written of the model is."""
    console, current, source = terminal.console(), settings(), spec.data.source
    for what, where in (
        ("Files land as", landing.source_uri(source)) if isinstance(source, str) else ("Rows", str(source)),
        ("Predictions", delta_tables.table_uri("predictions", spec.name)),
        ("Reports", f"{current.lake}/reports/{spec.name}"),
        ("Versions", _mlflow_page(spec)),
    ):
        console.print(Text(f"  {what + ':':<15} {where}"), soft_wrap=True)


def _predictions_command(spec: ModelSpec, steps: list[Step]) -> str:
    scored = next(step for step in steps if step.name == "score").arguments
    end = f" --end {scored['end']}" if "end" in scored else ""
    return f"perennial predictions {spec.name} {'--start' if end else '--date'} {scored['start']}{end}"


def _mlflow_page(spec: ModelSpec, version: str | None = None) -> str:
    page = f"{settings().mlflow_uri}/#/models/{spec.name}"
    return f"{page}/versions/{version}" if version else page


@dataclass
class FirstRun:
    """What was done of the first run.

    Attributes:
        steps: all steps.
        results: result of each step that is done, by name, in order.
        succeeded: whether the model has a champion and predictions.
    """

    steps: list[Step]
    results: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    succeeded: bool = False

    def remaining(self) -> list[Step]:
        """The steps that are not done."""
        return [step for step in self.steps if step.name not in self.results]


def offer(folder: Path, first: str, last: str, wanted: bool | None, *, ask: bool) -> bool:
    """Run the steps of a new model if that is wanted, and print the commands that do the same.

    Args:
        folder: the model's folder.
        first: first partition of the sample.
        last: last partition of the sample.
        wanted: whether to run them; None: ask, or if no questions are asked, do not.
        ask: whether to ask.

    Returns:
        False if the steps were run and the model has no champion.

    Raises:
        PerennialError: the steps are to be run and the sample has not landed, or a step failed.
    """
    spec, console = catalog.load_model(folder), terminal.console()
    landed = _has_landed(spec, first)
    if wanted and not landed:
        raise PerennialError(
            f"{landing.source_uri(str(spec.data.source), first)} has not landed: there is nothing to run",
            f"{spec.folder} is complete: land the files, then `perennial missing {spec.name}` lists the steps",
            model=spec.name,
        )
    if wanted is None and ask and landed:
        try:
            wanted = typer.confirm("Run it now: publish the sample, train, promote, score?", default=True)
        except typer.Abort:  # no answer: the folder is complete
            console.print()
    done = run(spec, first, last) if wanted else FirstRun(plan(first, last), succeeded=True)
    console.print("The same by hand:" if wanted else "Next:")
    _print_commands(spec, [Step("check", "check the folder", {}), *done.steps])
    _print_places(spec)
    return done.succeeded


def _has_landed(spec: ModelSpec, day: str) -> bool:
    source = spec.data.source
    # a query gives the rows of any partition
    return not isinstance(source, str) or landing.has_landed(landing.source_uri(source, day))


def run(spec: ModelSpec, first: str, last: str) -> FirstRun:
    """Run the steps one after the other, with a line about each, and print the predictions.

    Args:
        spec: the model; its sample has landed.
        first: first partition of the sample.
        last: last partition of the sample.

    Raises:
        PerennialError: a step failed; the commands that continue were printed.
    """
    progress.log_to_stderr()
    done = FirstRun(plan(first, last))
    try:
        for i, step in enumerate(done.steps):
            if step.name == "train":
                _check_mlflow(spec)
            if step.name == "score":
                step = done.steps[i] = _with_scored_partitions(spec, step)
            if not _run_step(spec, step, done):
                return done
        _print_results(spec, done)
    except BaseException:
        if remaining := done.remaining():
            terminal.console().print(Text(f"The folder {spec.folder} stays. To continue:"))
            _print_commands(spec, remaining)
        raise
    done.succeeded = True
    return done


def _run_step(spec: ModelSpec, step: Step, done: FirstRun) -> bool:
    """Run one step and print its result; returns whether the next one can run."""
    console, started = terminal.console(), time.monotonic()
    console.print(Text(f"{step.name}: {step.title} …"))
    arguments: dict[str, Any] = dict(step.arguments)
    if "actor" in dispatch.parameter_names(step.name):
        arguments["actor"] = terminal.user()
    try:
        result = dispatch.run(step.name, spec, **arguments)
    except PerennialError as error:
        if step.name == "data" and not _unpublished(spec, arguments):
            console.print(Text(f"  note: {error.cause}"), soft_wrap=True)
            result = _published(spec, arguments)
        elif step.optional:
            console.print(Text(f"  not done: {error.cause}"), soft_wrap=True)
            return True
        else:
            raise
    done.results[step.name] = result
    for line in _lines(spec, step.name, result):
        console.print(Text(f"  {line}"), soft_wrap=True)
    console.print(Text(f"  done in {time.monotonic() - started:.0f} s"))
    if step.name == "promote" and not result["promoted"]:
        for line in _advice(spec, step.arguments["as_of"], done.results["train"], result["reason"]):
            console.print(Text(line), soft_wrap=True)
        return False
    if step.name == "score" and result["status"] == "no champion":
        console.print(Text("  there is no champion: nothing was scored"))
        return False
    return True


def _landed(spec: ModelSpec, arguments: Mapping[str, Any]) -> list[str]:
    """The partitions of a range that have landed."""
    source = spec.data.source
    if not isinstance(source, str):
        return spec.cadence.keys(arguments["start"], arguments["end"])
    days = landing.list_landed(source, spec.cadence)
    return [day for day in days if arguments["start"] <= day <= arguments["end"]]


def _unpublished(spec: ModelSpec, arguments: Mapping[str, Any]) -> bool:
    """Whether a landed file of a range is not published, or none has landed; if not, only dates have no file."""
    landed = _landed(spec, arguments)
    published = delta_tables.partitions(delta_tables.table_uri("published", spec.name))
    return not landed or bool({*landed} - {*published})


def _published(spec: ModelSpec, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What the data step returns of the partitions that have landed."""
    days = _landed(spec, arguments)
    done = [m.result for m in (manifests.read(spec.name, "data", day) for day in days) if m]
    return {"partitions": days} | {
        name: sum(result[name] for result in done) for name in ("rows_out", "quarantined")
    }


def _lines(spec: ModelSpec, step: str, result: Mapping[str, Any]) -> Iterator[str]:
    """What a step did, in lines for a person."""
    if step == "data":
        yield (
            f"{result['rows_out']:,} rows of {len(result['partitions']):,} partitions published, "
            f"{result['quarantined']:,} in quarantine"
        )
    elif step == "train":
        rows = result["rows"]
        shown = ", ".join(f"{name} {value:.4g}" for name, value in result["metrics"].items())
        yield f"version {result['version']}, held-out metrics: {shown}"
        yield f"rows: {rows['fit']:,} to fit, {rows['valid']:,} to stop and choose, {rows['holdout']:,} held out"
        yield from (f"gate {reason}" for reason in result["gate"]["reasons"])
    elif step == "promote":
        yield f"version {result['version']} is {'champion' if result['promoted'] else 'not champion'}"
    elif step == "score":
        yield f"{result['rows_out']:,} predictions by version {result['model_version']}"
    elif step == "monitor":
        yield f"verdict: {result['verdict']}"
        if result["verdict"] == "undetermined":
            yield "how well the champion does is evaluated on partitions that come after its training"


def _check_mlflow(spec: ModelSpec) -> None:
    """Ask whether MLflow answers, because the training would try for a long time.

    Raises:
        PerennialError: it does not.
    """
    import requests

    from perennial.modeling import mlflow_api

    uri = settings().mlflow_uri
    if not uri.startswith("http"):
        return
    try:
        requests.get(f"{uri}/health", timeout=MLFLOW_SECONDS, **mlflow_api.request_credentials())
    except requests.RequestException as error:
        raise PerennialError(
            f"MLflow at {uri} does not answer ({type(error).__name__}); trainings are recorded there",
            "start it: `make start` starts MLflow and Airflow on this machine; or set MLFLOW_TRACKING_URI. Then run "
            "the commands above",
            model=spec.name,
        ) from None


def _with_scored_partitions(spec: ModelSpec, step: Step) -> Step:
    """The score step for the latest published partitions that have enough rows to look at."""
    rows = delta_tables.rows_by_partition(delta_tables.table_uri("published", spec.name))
    last = step.arguments.get("end") or step.arguments["start"]
    days, total = [day for day in sorted(rows) if day <= last], 0
    chosen = last
    for day in reversed(days[-SCORED_PARTITIONS:]):
        chosen, total = day, total + rows[day]
        if total >= SCORED_ROWS:
            break
    arguments = {"start": chosen} | ({"end": last} if chosen != last else {})
    return Step(step.name, step.title, arguments)


def _print_results(spec: ModelSpec, done: FirstRun) -> None:
    """Print some predictions, and where everything is."""
    console = terminal.console()
    scored = done.results["score"]["partitions"] or [done.results["train"]["as_of"]]
    predictions.show(spec, start=min(scored), end=max(scored), limit=SHOWN_PREDICTIONS)
    report = done.results.get("monitor", {}).get("report")
    for what, where in (
        ("Evaluation", _mlflow_page(spec, done.results["train"]["version"])),
        ("Report", report),
    ):
        if where:
            console.print(Text(f"{what + ':':<12} {where}"), soft_wrap=True)


def _advice(spec: ModelSpec, as_of: str, trained: Mapping[str, Any], reason: str) -> Iterator[str]:
    """Why a challenger did not become champion, and what can be done."""
    gate, rows = trained["gate"], trained["rows"]
    yield f"Version {trained['version']} was not promoted, and nothing is scored:"
    failed = [text for text in gate["reasons"] if text.startswith("FAILED")]
    yield from (f"  - {text.removeprefix('FAILED: ')}" for text in failed or [reason])
    yield "What to do next:"
    constant = gate["against_baselines"].get("constant")
    if constant and constant["improvement"] > 0 >= constant["low"]:
        yield (
            f"  - More rows: it was better on average, but {rows['holdout']:,} held-out rows do not show that this is "
            "no chance. Land more partitions, publish them, and train as of the latest."
        )
    elif constant and constant["improvement"] <= 0:
        yield (
            "  - Other features, or another label: these features do not predict the label on later partitions. Look "
            "at features.sql, and at what the label means and when it is known."
        )
    yield f"  - Look at its evaluation: {_mlflow_page(spec, trained['version'])}"
    yield (
        "  - Accept it as it is: in model.yaml, lower gate.confidence, or set gate.beat_baseline to false. Then run:"
    )
    for name, text in (("train", f"--as-of {as_of} --force"), ("promote", f"--as-of {as_of}")):
        yield f"      perennial run {name} --model {spec.name} {text}"
