"""What Airflow does on AWS: alerts by SNS, connections from Secrets Manager, task logs on S3. All over real HTTP."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from airflow.sdk.exceptions import AirflowFailException

from perennial.alerting import incidents
from perennial.core.settings import ROOT
from perennial.spec.model_spec import ModelSpec
from perennial_airflow.alerting import alerts
from support import servers

REGION = "eu-central-1"


@pytest.fixture(scope="module")
def aws_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with servers.s3(tmp_path_factory.mktemp("aws")) as url:
        yield url


@pytest.fixture(autouse=True)
def aws(aws_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": aws_url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": REGION, "AWS_DEFAULT_REGION": REGION, "AIRFLOW_CONN_AWS_DEFAULT": "aws://",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


def client(service: str) -> Any:
    import boto3

    return boto3.client(service)


# --- SNS


@pytest.fixture
def topic() -> Iterator[tuple[str, str]]:
    """A topic, and a queue that is subscribed to it."""
    sns, sqs = client("sns"), client("sqs")
    arn = sns.create_topic(Name="failures")["TopicArn"]
    queue = sqs.create_queue(QueueName="listener")["QueueUrl"]
    its_arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    sns.subscribe(TopicArn=arn, Protocol="sqs", Endpoint=its_arn)
    yield arn, queue
    sqs.delete_queue(QueueUrl=queue)
    sns.delete_topic(TopicArn=arn)


def told(queue: str) -> list[dict[str, Any]]:
    got = client("sqs").receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages", [])
    return [json.loads(m["Body"]) for m in got]


def failure() -> Any:
    task = SimpleNamespace(
        dag_id="flight_late.data", task_id="data", run_id="r", try_number=3, log_url="http://ui/log"
    )
    run = SimpleNamespace(partition_key="2013-02-01")
    error = AirflowFailException("the file is empty")
    return {"task_instance": task, "dag_run": run, "params": {}, "exception": error}


def test_a_topic_is_told_of_a_failure(topic: tuple[str, str], spec: ModelSpec) -> None:
    arn, queue = topic
    channels = [{"name": "team", "kind": "sns", "topic": arn}]
    spec = ModelSpec.model_validate(spec.model_dump() | {"alerts": {"channels": channels}})
    alerts.on_failure(spec)(failure())
    (got,) = told(queue)
    assert got["TopicArn"] == arn
    assert got["Subject"] == "flight_late: failure:data is bad, partition 2013-02-01"
    message = json.loads(got["Message"])
    assert (message["reason"], message["owner"], message["log"]) == (
        "the file is empty",
        spec.owner,
        "http://ui/log",
    )


def test_the_environment_may_name_a_topic_too(
    topic: tuple[str, str], spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERENNIAL_ALERT_URL", topic[0])
    alerts.on_failure(spec)(failure())
    assert len(told(topic[1])) == 1


def test_a_topic_that_is_not_there_keeps_its_notice(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERENNIAL_ALERT_URL", f"arn:aws:sns:{REGION}:123456789012:no-such-topic")
    alerts.on_failure(spec)(failure())
    assert len(incidents.read_log(spec.name).outbox) == 1


def test_a_service_that_is_away_fails_nothing(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("PERENNIAL_ALERT_URL", f"arn:aws:sns:{REGION}:123456789012:failures")
    alerts.on_failure(spec)(failure())
    assert len(incidents.read_log(spec.name).outbox) == 1


# --- Secrets Manager and logs: the settings are those of docs/production-on-aws.md


def page() -> str:
    return (ROOT / "docs" / "production-on-aws.md").read_text()


def setting(name: str) -> str:
    """What the page says that a variable is set to."""
    (line,) = [row for row in page().splitlines() if row.strip().startswith(f"{name}=")]
    return line.split("=", 1)[1].strip()


def test_a_connection_comes_from_secrets_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.configuration import ensure_secrets_loaded, initialize_secrets_backends

    for name in ("AIRFLOW__SECRETS__BACKEND", "AIRFLOW__SECRETS__BACKEND_KWARGS"):
        monkeypatch.setenv(name, setting(name))
    secret = {"conn_type": "http", "host": "feed.example.com", "login": "airflow", "password": "not told"}
    client("secretsmanager").create_secret(
        Name="airflow/connections/feed_api", SecretString=json.dumps(secret)
    )
    client("secretsmanager").create_secret(Name="airflow/variables/feed", SecretString="daily")
    backend = initialize_secrets_backends()[0]
    assert type(backend).__name__ == "SecretsManagerBackend"
    found = backend.get_connection("feed_api")
    assert found is not None
    assert (found.conn_type, found.host, found.login, found.password) == ("http", "feed.example.com", "airflow",
                                                                         "not told")  # fmt: skip
    assert backend.get_variable("feed") == "daily"
    assert backend.get_connection("no_such") is None
    assert callable(ensure_secrets_loaded)


def test_a_tasks_log_is_kept_on_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.providers.amazon.aws.log.s3_task_handler import S3RemoteLogIO

    for name in (
        "AIRFLOW__LOGGING__REMOTE_LOGGING", "AIRFLOW__LOGGING__REMOTE_BASE_LOG_FOLDER",
        "AIRFLOW__LOGGING__REMOTE_LOG_CONN_ID", "AIRFLOW__LOGGING__DELETE_LOCAL_LOGS",
        "AIRFLOW__LOGGING__ENCRYPT_S3_LOGS",
    ):  # fmt: skip
        monkeypatch.setenv(name, setting(name))
    monkeypatch.setenv("AIRFLOW__LOGGING__BASE_LOG_FOLDER", str(tmp_path))
    bucket = setting("AIRFLOW__LOGGING__REMOTE_BASE_LOG_FOLDER").removeprefix("s3://").split("/")[0]
    client("s3").create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
    place = Path("dag_id=flight_late.data/run_id=r/task_id=data/attempt=1.log")
    log = tmp_path / place
    io = S3RemoteLogIO.from_config()
    for text in ("first part", "second part"):
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(text)
        io.upload(str(place))
        assert not log.exists()
    sources, lines = S3RemoteLogIO.from_config().read(str(place), None)
    assert sources == [f"s3://{bucket}/airflow/{place}"]
    assert lines == ["first part\nsecond part"]


# --- the page itself


def test_the_policies_of_the_page_are_accepted() -> None:
    blocks = re.findall(r"```json\n(.*?)```", page(), re.DOTALL)
    policies = [block for block in blocks if '"Principal"' not in block]
    assert len(policies) == 3
    iam = client("iam")
    for n, policy in enumerate(policies):
        iam.create_policy(PolicyName=f"policy-{n}", PolicyDocument=policy)
    (trust,) = [block for block in blocks if '"Principal"' in block]
    iam.create_role(RoleName="perennial-step", AssumeRolePolicyDocument=trust)


def test_the_page_and_the_charts_values_agree() -> None:
    values = yaml.safe_load((ROOT / "docker/kubernetes/values-airflow.yaml").read_text())
    given = {item["name"]: item["value"] for item in values["env"]}
    for name in ("PERENNIAL_LAKE", "PERENNIAL_LANDING", "MLFLOW_TRACKING_URI", "AIRFLOW_CONN_AWS_DEFAULT"):
        assert setting(name) == given[name]
    assert json.loads(setting("AIRFLOW_CONN_KUBERNETES_DEFAULT")) == json.loads(
        given["AIRFLOW_CONN_KUBERNETES_DEFAULT"]
    )
    for key, value in values["config"]["logging"].items():
        assert setting(f"AIRFLOW__LOGGING__{key.upper()}") == value
