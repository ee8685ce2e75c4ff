"""Make an empty database one of MLflow's, with the schema before the current one and an experiment called ``kept``.

Run in the image of MLflow or here; ``MLFLOW_BACKEND_STORE_URI`` names the database. Prints both schemas.
"""

from __future__ import annotations

import os

import sqlalchemy
from alembic import command
from alembic.script import ScriptDirectory
from mlflow.store.db import utils
from mlflow.store.tracking.dbmodels.initial_models import Base

engine = utils.create_sqlalchemy_engine_with_retry(os.environ["MLFLOW_BACKEND_STORE_URI"])
config = utils._get_alembic_config(engine.url.render_as_string(hide_password=False))
script = ScriptDirectory.from_config(config)
current = script.get_current_head()
older = script.get_revision(current).down_revision
Base.metadata.create_all(engine)
with engine.begin() as connection:
    config.attributes["connection"] = connection
    command.upgrade(config, older)
    connection.execute(sqlalchemy.text(
        "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage)"
        " VALUES (7, 'kept', 'mlflow-artifacts:/7', 'active')"
    ))  # fmt: skip
print(older, current)
