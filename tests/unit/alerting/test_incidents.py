"""Incidents: opened once, counted, updated when they get worse, closed; muted; delivered at least once."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from typer.testing import CliRunner

from perennial.alerting import daily_summary, incidents
from perennial.alerting.incidents import Notice, SignalObservation
from perennial.cli.app import app
from perennial.core.errors import PerennialError, StorageError
from perennial.core.settings import ROOT
from perennial.spec.alerts import AlertsSpec, Channel, Mute
from perennial.spec.model_spec import ModelSpec
from perennial.storage import ledger
from perennial.storage.ledger import LedgerKind
from support import processes, toys

D1, D2, D3, D4 = "2024-03-03", "2024-03-10", "2024-03-17", "2024-03-24"
TEAM = {"name": "team", "kind": "webhook", "url": "http://127.0.0.1:9/team"}
EARLY = {"name": "early", "kind": "webhook", "url": "http://127.0.0.1:9/early", "severity": "suspected"}


@pytest.fixture
def spec(empty_home: Path, tmp_path: Path) -> ModelSpec:
    return toys.model(tmp_path / "models", "toy", alerts={"channels": [TEAM]})


def summarise(notices: list[Notice]) -> list[tuple[str, str]]:
    return [(n.channel, n.kind) for n in notices]


def drift(state: str, reason: str = "") -> dict[str, SignalObservation]:
    return {"features": SignalObservation(state, reason)}  # type: ignore[arg-type]


def deliver(spec: ModelSpec) -> list[tuple[str, str]]:
    """Empty the outbox; returns channel and kind of its notices."""
    delivered: list[tuple[str, str]] = []

    def take(channel: Channel, notice: Notice) -> bool:
        delivered.append((channel.name, notice.kind))
        return True

    assert incidents.deliver_notices(spec, take) == 0
    return delivered


def test_an_incident_opens_once_counts_and_ends(spec: ModelSpec) -> None:
    assert incidents.record_signals(spec, D1, drift("ok")) == []
    (opened,) = incidents.record_signals(spec, D2, drift("bad", "x moved"))
    assert (opened.kind, opened.title) == ("opened", f"toy: features is bad, partition {D2}")
    assert "x moved" in opened.text and "Owner: tests" in opened.text
    assert deliver(spec) == [("team", "opened")]
    assert incidents.record_signals(spec, D3, drift("bad", "x and z moved")) == []
    (item,) = incidents.read_log("toy").open
    assert (item.count, item.first, item.last, item.reason, item.worst_reason) == (
        2, D2, D3, "x and z moved", "x moved",
    )  # fmt: skip
    (closed,) = incidents.record_signals(spec, D4, drift("ok", "as before"))
    assert (closed.kind, closed.title) == ("closed", f"toy: features recovered, partition {D4}")
    assert "observed 2 times since 2024-03-10" in closed.text
    assert incidents.read_log("toy").open == []


def test_it_is_reopened_as_another_incident(spec: ModelSpec) -> None:
    for day, state in ((D1, "bad"), (D2, "ok"), (D3, "bad")):
        incidents.record_signals(spec, day, drift(state))
    assert [(n.kind, n.number) for n in incidents.read_log("toy").outbox] == [
        ("opened", 1), ("closed", 1), ("opened", 2),
    ]  # fmt: skip


@pytest.mark.parametrize("again", [D1, D2])
def test_a_rerun_and_a_backfill_change_nothing(spec: ModelSpec, again: str) -> None:
    incidents.record_signals(spec, D1, drift("bad", "x"))
    incidents.record_signals(spec, D2, drift("ok"))
    deliver(spec)
    before = Path(incidents.log_uri("toy")).read_text()
    state = "bad" if again == D1 else "ok"
    assert incidents.record_signals(spec, again, drift(state, "x")) == []
    assert Path(incidents.log_uri("toy")).read_text() == before


def test_a_rerun_of_the_date_that_is_bad_counts_once(spec: ModelSpec) -> None:
    for _ in range(3):
        incidents.record_signals(spec, D1, drift("bad", "x"))
    assert summarise(incidents.read_log("toy").outbox) == [("team", "opened")]
    assert incidents.read_log("toy").open[0].count == 1


def test_undetermined_neither_opens_nor_ends(spec: ModelSpec) -> None:
    assert incidents.record_signals(spec, D1, drift("undetermined")) == []
    incidents.record_signals(spec, D1, drift("bad"))
    incidents.record_signals(spec, D2, drift("undetermined"))
    (item,) = incidents.read_log("toy").open
    assert (item.count, item.last) == (1, D1)
    assert incidents.read_log("toy").verdict_dates == {"features": D1}


def test_getting_worse_is_sent_once_and_each_channel_gets_what_it_is_for(
    empty_home: Path, tmp_path: Path
) -> None:
    data = TEAM | {"name": "data", "signals": ["failure:*", "deadline:*"]}
    spec = toys.model(tmp_path / "models", "toy", alerts={"channels": [TEAM, EARLY, data]})
    assert summarise(incidents.record_signals(spec, D1, drift("suspected", "a little"))) == [
        ("early", "opened")
    ]
    deliver(spec)
    worse = incidents.record_signals(spec, D2, drift("bad", "a lot"))
    assert summarise(worse) == [("team", "opened"), ("early", "updated")]
    assert worse[1].title == f"toy: features got worse, is bad, partition {D2}"
    deliver(spec)
    incidents.record_signals(spec, D3, drift("suspected", "less"))
    assert incidents.record_signals(spec, D4, drift("bad", "again")) == []
    closed = incidents.record_signals(
        spec, "2024-03-31", drift("ok") | {"failure:score": SignalObservation("bad", "disk full")}
    )
    assert summarise(closed) == [
        ("early", "closed"), ("team", "closed"), ("team", "opened"), ("early", "opened"), ("data", "opened"),
    ]  # fmt: skip


def test_a_failure_is_one_whatever_its_date_and_the_next_success_ends_it(spec: ModelSpec) -> None:
    late = {"failure:data": SignalObservation("bad", "did not land")}
    well = {"failure:data": SignalObservation("ok")}
    assert incidents.record_signals(spec, D2, well) == []
    assert not Path(incidents.log_uri("toy")).exists(), "a success that ends nothing writes nothing"
    assert summarise(incidents.record_signals(spec, D1, late)) == [("team", "opened")]
    deliver(spec)
    incidents.record_signals(spec, "2024-03-02", well)
    assert len(incidents.read_log("toy").open) == 1, "a success of an earlier date says nothing"
    assert summarise(incidents.record_signals(spec, D1, well)) == [("team", "closed")]


def test_a_mistyped_year_opens_nothing_and_hides_nothing(spec: ModelSpec) -> None:
    lost = {"failure:data": SignalObservation("bad", "did not land"), **drift("bad", "x moved")}
    assert incidents.record_signals(spec, "2999-01-01", lost) == []
    assert incidents.notices_without_history(spec, "2999-01-01", lost) == []
    assert incidents.read_log("toy") == incidents.IncidentLog()
    assert summarise(incidents.record_signals(spec, D1, lost)) == [("team", "opened")] * 2
    incidents.record_signals(spec, D2, {"failure:data": SignalObservation("ok")} | drift("ok"))
    assert incidents.read_log("toy").open == []


def test_dates_in_the_future_that_were_recorded_earlier_are_forgotten(spec: ModelSpec) -> None:
    incidents.record_signals(spec, D1, {"failure:data": SignalObservation("bad"), **drift("bad")})
    path = Path(incidents.log_uri("toy"))
    path.write_text(path.read_text().replace(D1, "2999-01-01"))
    log = incidents.read_log("toy")
    assert [(i.first, i.last) for i in log.open] == [("", "")] * 2 and log.verdict_dates == {}
    incidents.record_signals(spec, D2, {"failure:data": SignalObservation("ok")} | drift("ok"))
    assert incidents.read_log("toy").open == []


def test_a_failed_run_after_the_schedule_is_ended_by_the_next_success(
    empty_home: Path, tmp_path: Path
) -> None:
    spec = toys.model(tmp_path / "models", "toy", alerts={"channels": [TEAM]}, schedule={"end": D3})
    incidents.record_signals(
        spec, D4, {"failure:data": SignalObservation("bad", "no file", details={"run_id": "a"})}
    )
    (item,) = incidents.read_log("toy").open
    assert (item.first, item.last, item.count) == ("", "", 1)
    incidents.record_signals(spec, D1, {"failure:data": SignalObservation("bad", "disk full")})
    (item,) = incidents.read_log("toy").open
    assert (item.first, item.last, item.count, item.reason) == (D1, D1, 2, "disk full")
    incidents.record_signals(spec, D1, {"failure:data": SignalObservation("ok")})
    assert incidents.read_log("toy").open == []
    incidents.record_signals(spec, D4, {"failure:data": SignalObservation("bad", "no file")})
    assert summarise(incidents.record_signals(spec, D1, {"failure:data": SignalObservation("ok")}))[-1:] == [
        ("team", "closed")
    ]


def rollback(state: str, run: str, reason: str = "") -> dict[str, SignalObservation]:
    return {"failure:rollback": SignalObservation(state, reason, details={"run_id": run})}  # type: ignore[arg-type]


def test_failures_of_runs_without_a_date_are_counted_and_the_next_success_ends_them(spec: ModelSpec) -> None:
    for run in ("first", "first", "second"):
        incidents.record_signals(spec, "", rollback("bad", run, f"{run}: no such version"))
    (item,) = incidents.read_log("toy").open
    assert (item.count, item.observed, item.reason) == (2, "observed 2 times", "second: no such version")
    deliver(spec)
    (closed,) = incidents.record_signals(spec, "", rollback("ok", "third"))
    assert (closed.kind, closed.title) == ("closed", "toy: failure:rollback recovered")
    assert incidents.read_log("toy").open == []
    (opened,) = [
        n for n in incidents.record_signals(spec, "", rollback("bad", "fourth")) if n.kind == "opened"
    ]
    assert opened.number == 2


def test_a_person_resolves_an_incident(spec: ModelSpec) -> None:
    incidents.record_signals(spec, "", rollback("bad", "first", "there is no version 99"))
    deliver(spec)
    run = CliRunner()
    wrong = run.invoke(app, ["resolve", "toy", "failure:score", "--reason", "done by hand"])
    assert "failure:score has no open incident" in str(wrong.exception)
    assert "open incidents: failure:rollback" in str(wrong.exception)
    for reason in ("", "   "):
        assert "too short" in str(
            run.invoke(app, ["resolve", "toy", "failure:rollback", "--reason", reason]).exception
        )
    done = run.invoke(app, ["resolve", "toy", "failure:rollback", "--reason", "version 4 was meant"])
    assert done.output.strip() == "toy: incident 1 of failure:rollback is resolved."
    log = incidents.read_log("toy")
    assert log.open == []
    (notice,) = log.outbox
    assert (notice.kind, notice.reason.startswith("resolved by ")) == ("closed", True)
    assert notice.reason.endswith(": version 4 was meant")
    (record,) = ledger.records("toy", LedgerKind.ALERTING)
    assert (record["decision"], record["reason"]) == ("resolved", "version 4 was meant")
    assert record["evidence"] == {
        "signal": "failure:rollback", "number": 1, "incident": "there is no version 99",
    }  # fmt: skip


def test_every_list_gives_the_same_reason(spec: ModelSpec) -> None:
    incidents.record_signals(spec, D1, drift("bad", "x moved far"))
    incidents.record_signals(spec, D2, drift("suspected", "x moved a little"))
    reason = "x moved a little; before, it was bad: x moved far"
    shown = CliRunner().invoke(app, ["incidents", "toy"], env={"COLUMNS": "250"}).output
    assert reason in shown and "suspected" in shown
    summary = daily_summary.compose({"toy": spec}).text
    assert f"features is suspected since {D1}, observed 2 times, last {D2}: {reason}" in summary
    late = spec.model_copy(
        update={"alerts": AlertsSpec.model_validate({"channels": [TEAM | {"name": "late"}]})}
    )
    notice = incidents.record_signals(late, D3, drift("suspected", "x moved a little"))[-1]
    assert (notice.channel, notice.severity, notice.reason) == ("late", "suspected", reason)


def test_a_part_that_is_well_does_not_end_what_another_part_failed_in(spec: ModelSpec) -> None:
    incidents.record_signals(spec, D1, {"failure:score": SignalObservation("bad", "evicted", part=3)})
    incidents.record_signals(spec, D1, {"failure:score": SignalObservation("ok", part=4)})
    assert len(incidents.read_log("toy").open) == 1
    incidents.record_signals(spec, D1, {"failure:score": SignalObservation("ok", part=3)})
    assert incidents.read_log("toy").open == []


def test_what_is_not_delivered_stays_and_goes_to_that_channel_alone(empty_home: Path, tmp_path: Path) -> None:
    spec = toys.model(tmp_path / "models", "toy", alerts={"channels": [TEAM, EARLY]})
    incidents.record_signals(spec, D1, drift("bad"))
    assert incidents.deliver_notices(spec, lambda channel, _: channel.name == "early") == 1
    assert summarise(incidents.read_log("toy").outbox) == [("team", "opened")]
    assert deliver(spec) == [("team", "opened")]
    assert deliver(spec) == []


def test_one_that_is_killed_while_it_delivers_delivers_again(spec: ModelSpec) -> None:
    incidents.record_signals(spec, D1, drift("bad"))

    def die(channel: Channel, notice: Notice) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        incidents.deliver_notices(spec, die)
    assert deliver(spec) == [("team", "opened")]


def test_a_removed_channel_blocks_nothing(spec: ModelSpec, tmp_path: Path) -> None:
    incidents.record_signals(spec, D1, drift("bad"))
    spec = toys.model(tmp_path / "models", "toy", alerts={"channels": [EARLY]})
    assert deliver(spec) == []
    assert incidents.read_log("toy").outbox == []


def test_what_the_spec_mutes_is_recorded_and_sent_when_the_mute_is_over(
    empty_home: Path, tmp_path: Path
) -> None:
    mute = {"signals": ["features"], "until": D2, "reason": "a strike"}
    spec = toys.model(tmp_path / "models", "toy", alerts={"channels": [TEAM], "mute": [mute]})
    assert incidents.record_signals(spec, D1, drift("bad")) == []
    assert summarise(incidents.record_signals(spec, D1, {"performance": SignalObservation("bad")})) == [
        ("team", "opened")
    ]
    assert incidents.record_signals(spec, D2, drift("bad"))[1:] == []
    (item,) = [i for i in incidents.read_log("toy").open if i.signal == "features"]
    assert item.count == 2
    (record,) = ledger.records("toy", LedgerKind.ALERTING)
    assert (record["decision"], record["reason"], record["actor"]) == ("muted", "a strike", "model.yaml")
    assert record["evidence"] == {"signals": ["features"], "until": D2}
    deliver(spec)
    assert summarise(incidents.record_signals(spec, D3, drift("bad"))) == [("team", "opened")]


def test_mute_and_incidents_of_the_command_line(spec: ModelSpec) -> None:
    run = CliRunner()
    assert (
        run.invoke(app, ["incidents"], env={"COLUMNS": "200"}).output.strip()
        == "There are no open incidents."
    )
    incidents.record_signals(spec, D1, drift("bad", "x moved"))
    done = run.invoke(app, ["mute", "toy", "features", "--until", D3, "--reason", "known: a new shop"])
    assert done.exit_code == 0, done.output
    assert incidents.record_signals(spec, D2, {"features": SignalObservation("bad")})[1:] == []
    shown = run.invoke(app, ["incidents", "toy"], env={"COLUMNS": "200"}).output
    for piece in ("toy", "features", "bad, muted", D1, D2, "x moved", "until 2024-03-17: known: a new shop",
                  "1 message could not be delivered yet"):  # fmt: skip
        assert piece in shown, shown
    (record,) = ledger.records("toy", LedgerKind.ALERTING)
    assert "(command line)" in record["actor"]
    assert ledger.verify("toy") == 1
    as_json = json.loads(run.invoke(app, ["incidents", "toy", "--json"]).output)
    assert as_json["toy"]["incidents"]["features"]["count"] == 2
    assert incidents.read_log("toy").muted(spec, "features", D2)
    ended = run.invoke(app, ["unmute", "toy", "features"])
    assert ended.output.strip() == "toy: features is no longer muted."
    assert incidents.read_log("toy").mutes == [] and not incidents.read_log("toy").muted(spec, "features", D2)
    record = ledger.records("toy", LedgerKind.ALERTING)[-1]
    assert (record["decision"], record["reason"]) == (
        "unmuted", "the mute until 2024-03-17 was ended (known: a new shop)",
    )  # fmt: skip
    again = run.invoke(app, ["unmute", "toy", "features"])
    assert "features is not muted from the command line" in str(again.exception)


@pytest.mark.parametrize(
    ("signal", "until", "cause", "remedy"),
    [
        ("perfomance", D3, "no signal is called 'perfomance'", "did you mean 'performance'?"),
        ("failure:scores", D3, "no signal is called", "did you mean 'failure:score'?"),
        ("xyz", D3, "no signal is called 'xyz'", "the signals are: attributions, backlog, "),
        ("features", "2999-01-01", "a mute lasts 366 days at most", "renew it then"),
        ("features", "2025-03-20", "until 2025-03-20 is more than 366 days after 2024-03-10", "up to 2025-03-11"),
        ("features", D1, "until 2024-03-03 is before 2024-03-10, the latest partition", "perennial unmute toy"),
    ],
)  # fmt: skip
def test_a_mute_that_would_do_nothing_or_last_for_ever_is_refused(
    spec: ModelSpec, signal: str, until: str, cause: str, remedy: str
) -> None:
    incidents.record_signals(spec, D2, drift("bad"))
    result = CliRunner().invoke(app, ["mute", "toy", signal, "--until", until, "--reason", "a strike"])
    assert cause in str(result.exception) and remedy in str(result.exception)
    assert incidents.read_log("toy").mutes == [] and ledger.records("toy") == []


def test_a_mute_may_begin_before_anything_was_observed(spec: ModelSpec) -> None:
    """In a replay of old partitions, a date that is long past is still to come."""
    early = CliRunner().invoke(app, ["mute", "toy", "*", "--until", "2023-01-01", "--reason", "a strike"])
    assert "before 2024-01-01, the first partition" in str(early.exception)
    assert CliRunner().invoke(app, ["mute", "toy", "*", "--until", D1, "--reason", "a strike"]).exit_code == 0
    assert incidents.read_log("toy").muted(spec, "labels", D1)


@pytest.mark.parametrize("reason", ["", "   "])
def test_a_blank_is_no_reason(spec: ModelSpec, reason: str) -> None:
    result = CliRunner().invoke(app, ["mute", "toy", "--until", D1, "--reason", reason])
    assert "reason is" in str(result.exception)


@pytest.mark.parametrize(
    ("alerts", "cause"),
    [
        ({"channels": [TEAM | {"signals": ["failures:*"]}]}, "did you mean 'failure:"),
        ({"channels": [TEAM | {"signals": ["approval"]}]}, r"write decisions: \[approval\]"),
        ({"mute": [{"signals": ["featurs"], "until": D1, "reason": "a strike"}]}, "did you mean 'features'"),
        ({"mute": [{"until": "2999-01-01", "reason": "a strike"}]}, "a mute lasts 366 days at most"),
    ],
)
def test_the_spec_names_signals_that_exist(alerts: dict[str, object], cause: str) -> None:
    with pytest.raises(ValidationError, match=cause):
        AlertsSpec.model_validate(alerts)


def test_mutes_that_an_earlier_version_accepted_still_count(spec: ModelSpec) -> None:
    incidents.mute_signals("toy", Mute(signals=["features"], until=D1, reason="a strike"), "ann")  # type: ignore[arg-type]
    path = Path(incidents.log_uri("toy"))
    path.write_text(path.read_text().replace(D1, "2999-01-01").replace('"features"', '"typo"'))
    assert incidents.read_log("toy").muted(spec, "typo", D4)


@pytest.mark.parametrize(
    "wrong", [["--until", "soon", "--reason", "why not"], ["--until", D1], ["--reason", "why"]]
)
def test_a_mute_needs_a_date_and_a_reason(spec: ModelSpec, wrong: list[str]) -> None:
    result = CliRunner().invoke(app, ["mute", "toy", *wrong])
    assert isinstance(result.exception, PerennialError)
    assert "until" in str(result.exception) or "reason" in str(result.exception)


def test_a_file_with_another_content_is_a_storage_error(spec: ModelSpec) -> None:
    path = Path(incidents.log_uri("toy"))
    path.parent.mkdir(parents=True)
    path.write_text("[1]")
    with pytest.raises(StorageError, match=r"does not hold incidents(.|\n)*delete it"):
        incidents.record_signals(spec, D1, drift("bad"))


def test_several_writers_lose_nothing_and_notify_once(spec: ModelSpec) -> None:
    names = [f"task{i}" for i in range(6)]
    tasks = [
        processes.start(processes.incident, str(spec.folder), D1, ("features", f"failure:{n}")) for n in names
    ]
    assert processes.wait(*tasks) == [0] * 6
    log = incidents.read_log("toy")
    assert {i.signal for i in log.open} == {"features", *(f"failure:{n}" for n in names)}
    assert [n.signal for n in log.outbox].count("features") == 1


@pytest.mark.parametrize("page", ["docs/alerts-and-metrics.md", "docs/production-on-aws.md"])
def test_the_examples_of_the_pages_are_accepted(page: str) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    (alerts,) = [block["alerts"] for block in map(yaml.safe_load, blocks) if "alerts" in block]
    assert {c.kind for c in AlertsSpec.model_validate(alerts).channels} == {
        "slack",
        "email",
        "webhook",
        "sns",
    }
