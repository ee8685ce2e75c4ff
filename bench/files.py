"""``python -m bench.files [FILE:LABEL …]``: from a file to predictions, and the model's quality against plain XGBoost.

Each file becomes a model as a person makes it: ``perennial new FILE --label LABEL --yes``, then the commands that it
prints. Without arguments the files are those of `support.feeds.sample_files`, as in the part ``files`` of ``make
bench``. The table shows for each the minutes of all commands, the questions without a sure answer (remarks of ``--yes``
that name an option), the edits (1 if the label had to be named), and the held-out loss relative to plain XGBoost.

Plain are ``n_estimators=200, max_depth=6, learning_rate=0.1`` fitted on all rows before the held-out ones, and the
defaults with early stopping on the rows that Perennial uses for it. Both see the published columns, with native
categories, and month, weekday and hour of times; ids and texts that differ in most rows are left out. The better one
counts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from bench.figures import Figure
from bench.workspace import Workspace
from support.feeds import sample_files

#: Runs a command, given its arguments, and returns what it prints.
Command = Callable[..., str]
#: The highest loss relative to plain XGBoost that is good enough.
WORST = 1.02
#: Share of rows with a different text from which plain XGBoost is fitted without a column.
UNIQUE_SHARE = 0.5


def main() -> int:
    """Make a model of each file; returns 1 if one is more than 2% worse than plain XGBoost, or fails."""
    parser = argparse.ArgumentParser(prog="python -m bench.files", description=__doc__)
    parser.add_argument("files", nargs="*", help="FILE:LABEL")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="bench-files-") as folder,
        Workspace(Path(folder), 1, Console(stderr=True)) as workspace,
    ):
        results = measure_all(workspace, options.files)
    show(results)
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    return int(any(r.get("ratio", 9) > WORST for r in results))


def figures(workspace: Workspace) -> list[Figure]:
    """The part ``files`` of ``make bench``.

    Raises:
        RuntimeError: a file made no model.
    """
    results = measure_all(workspace, [])
    show(results)
    if failed := {r["file"]: r["error"] for r in results if "error" in r}:
        raise RuntimeError(f"no model of {', '.join(failed)}: {next(iter(failed.values()))}")
    return [
        Figure("files", f"{r['file']}: held-out loss, beside plain XGBoost's", r["ratio"], "×", WORST,
               detail=f"{r['minutes']:.1f} min, {r['questions']} questions, {r['edits']} edits; {r['task']}, "
               f"{r['holdout']:,} of {r['rows']:,} rows held out")
        for r in results
    ]  # fmt: skip


def measure_all(workspace: Workspace, arguments: list[str]) -> list[dict[str, Any]]:
    """Make a model of each file, with a working folder of its own.

    Args:
        workspace: where they are made.
        arguments: the files, as FILE:LABEL; without any, those of `support.feeds.sample_files`.
    """
    workspace.mlflow()
    models, results = workspace.folder / "models", []
    for name, path, label in _chosen(arguments, workspace.folder):
        home = workspace.folder / "files" / name
        home.mkdir(parents=True)
        env = {"PERENNIAL_HOME": str(home), "PERENNIAL_MODELS": str(models)}
        env["PERENNIAL_LANDING"] = str(home / "landing")
        try:
            measured = workspace.measure("first_model", env=env, name=name, path=str(path), label=label)
            results.append({"file": name} | measured.result)
        except Exception as error:  # the other files are still compared
            results.append({"file": name, "error": f"{error}"[-300:]})
        workspace.console.print(json.dumps(results[-1]), markup=False, soft_wrap=True)
    return results


def _chosen(arguments: list[str], folder: Path) -> Iterator[tuple[str, Path, str]]:
    """Name, path and label of each file."""
    for number, argument in enumerate(arguments, 1):
        path, _, label = argument.partition(":")
        yield f"file_{number}", Path(path).absolute(), label
    for file in () if arguments else sample_files.FILES:
        yield file.name, file.write(folder), file.label


def in_new_process(*arguments: str) -> str:
    """Run the command line in a new process, as a person does.

    Raises:
        RuntimeError: it failed.
    """
    done = subprocess.run([sys.executable, "-m", "perennial", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"perennial {shlex.join(arguments)}: {done.stderr}{done.stdout}")
    return done.stdout


def measure(name: str, path: Path, label: str, run: Command) -> dict[str, Any]:
    """Make a model of a file, and compare it with plain XGBoost."""
    began = time.monotonic()
    created = create_and_run(name, path, label, run)
    return {
        "minutes": (time.monotonic() - began) / 60,
        "questions": unsure_questions(created),
        "edits": int(not suggests(name, path, label, run)),
        **compare(name),
    }


def create_and_run(name: str, path: Path, label: str, run: Command) -> str:
    """Make a model of a file, and run the commands that ``perennial new`` prints; returns what it printed."""
    created = run("new", name, "--sample", str(path), "--label", label, "--yes")
    for line in printed_commands(created):
        run(*shlex.split(line)[1:])
    return created


def printed_commands(output: str) -> list[str]:
    """The commands that ``perennial new`` lists, without the one that writes a monitoring report."""
    lines = [line.partition("  # ")[0].strip() for line in output.splitlines()]
    return [line for line in lines if line.startswith("perennial ") and " run monitor " not in line]


def unsure_questions(created: str) -> int:
    """The number of questions without a sure answer: remarks of ``--yes`` that name the option for another one."""
    remarks = created.partition("Created ")[2].partition("\nNext:")[0].splitlines()[1:]
    return sum(" --" in remark for remark in remarks)


def suggests(name: str, path: Path, label: str, run: Command) -> bool:
    """Whether ``perennial new`` suggests the label by itself."""
    try:
        shown = run("new", f"{name}_suggested", "--sample", str(path), "--yes", "--dry-run")
    except RuntimeError:
        return False
    return f"**Prediction.** `{label}`:" in shown


def compare(name: str) -> dict[str, Any]:
    """Compare the champion's held-out loss with that of plain XGBoost on the same partitions."""
    from perennial.spec import catalog
    from perennial.storage import delta_tables, manifests
    from perennial.training.windows import candidate_windows

    spec = catalog.load_model_by_name(name)
    rows = delta_tables.rows_by_partition(delta_tables.table_uri("published", name))
    as_of = max(rows)
    trained = manifests.read(name, "train", as_of)
    assert trained is not None
    windows = next(iter(candidate_windows(spec, as_of, sorted(rows), "", rows).values()))
    plain, held_out = plain_losses(spec, windows)
    result = trained.result
    assert result["rows"]["holdout"] == held_out, "both are evaluated on the same rows"
    loss, lowest = result["metrics"][spec.metric], min(plain.values())
    # squared errors are compared by their roots, which have the label's unit
    root = 0.5 if spec.metric == "squared_error" else 1.0
    return {
        "task": spec.task,
        "rows": sum(rows.values()),
        "partitions": len(rows),
        **{part: result["rows"][part] for part in ("valid", "holdout")},
        "algorithm": result["algorithm"],
        "trials": result["trials"],
        "rounds": result["rounds"],
        "passed": result["gate"]["passed"],
        "loss": loss**root,
        **{f"plain_{name}": value**root for name, value in plain.items()},
        "ratio": (loss / lowest) ** root if lowest else float("nan"),
    }


def plain_losses(spec: Any, windows: Any) -> tuple[dict[str, float], int]:
    """The held-out losses of plain XGBoost, and the number of held-out rows."""
    import xgboost

    from perennial.features.targets import encode_targets, order_classes, read_classes
    from perennial.modeling import metrics
    from perennial.spec.constraints import OBJECTIVES

    def matrix(features: pd.DataFrame, y: Any = None) -> Any:
        return xgboost.DMatrix(features, y, enable_categorical=True)

    classes = order_classes(spec, read_classes(spec, windows.fit + windows.valid, None, None))
    tables = [labelled_rows(spec, days) for days in (windows.fit, windows.valid, windows.holdout)]
    y_fit, y_valid, y_held = (encode_targets(spec, table.column("__label"), classes) for table in tables)
    edges = np.cumsum([0, *(table.num_rows for table in tables)])
    frame = plain_features(spec, pd.concat([table.to_pandas() for table in tables], ignore_index=True))
    fit, valid, held = (frame.iloc[a:b] for a, b in itertools.pairwise(edges))
    params: dict[str, Any] = {"objective": OBJECTIVES[spec.task][0], "nthread": 2}
    if spec.task == "multiclass":
        params["num_class"] = len(classes)
    before, y_before = pd.concat([fit, valid]), np.concatenate([y_fit, y_valid])
    simple = xgboost.train(params | {"max_depth": 6, "learning_rate": 0.1}, matrix(before, y_before), 200)
    early = xgboost.train(
        params, matrix(fit, y_fit), 1000, evals=[(matrix(valid, y_valid), "valid")], early_stopping_rounds=20,
        verbose_eval=False,
    )  # fmt: skip
    rounds = {"simple": 200, "early": early.best_iteration + 1}

    def loss(name: str, model: Any) -> float:
        predicted = model.predict(matrix(held), iteration_range=(0, rounds[name]))
        return float(metrics.losses(spec.task, spec.metric, y_held, predicted).mean())

    return {name: loss(name, model) for name, model in (("simple", simple), ("early", early))}, len(held)


def plain_features(spec: Any, frame: pd.DataFrame) -> pd.DataFrame:
    """The published columns as a few lines of pandas make features of them."""
    unused = {"__label", "partition_date", spec.data.row_number, spec.label.expression}
    features: dict[str, pd.Series[Any]] = {}
    for name in [n for n in frame.columns if n not in unused]:
        column, kind = frame[name], spec.data.columns[name]
        if kind in ("date", "timestamp"):
            times = pd.to_datetime(column).dt
            features |= {f"{name} {part}": getattr(times, part) for part in ("month", "weekday", "hour")}
        elif kind == "string":
            if column.nunique() < UNIQUE_SHARE * len(frame):
                features[name] = column.astype("category")
        elif not (name in spec.data.key and column.is_unique):
            features[name] = column.astype(float)
    return pd.DataFrame(features)


def labelled_rows(spec: Any, days: tuple[str, ...]) -> Any:
    """Published rows of some partitions, with their labels."""
    import pyarrow as pa

    from perennial.features.labelled_rows import read_labelled_rows

    return pa.concat_tables(read_labelled_rows(spec, days, None, None))


def show(results: list[dict[str, Any]]) -> None:
    """Print the table; a ratio above 1 is worse than the better plain model."""
    table = Table(title="first models of files against plain XGBoost")
    names = ("file", "task", "rows", "partitions", "valid", "holdout", "minutes", "questions", "edits", "algorithm",
             "rounds", "passed", "loss", "plain_simple", "plain_early", "ratio", "error")  # fmt: skip
    for name in names:
        table.add_column(name)
    for r in results:
        shown = [r.get(n, "") for n in names]
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in shown))
    Console(width=180).print(table)
    ratios = [r["ratio"] for r in results if "ratio" in r]
    if ratios:
        print(f"geometric mean of the ratios {np.exp(np.mean(np.log(ratios))):.4f}, worst {max(ratios):.3f}")


if __name__ == "__main__":
    sys.exit(main())
