"""Model files."""

from __future__ import annotations

from pathlib import Path

import pytest

from perennial.core.errors import ArtifactError
from perennial.modeling import trained_model
from perennial.storage import object_store


def test_a_file_that_is_not_a_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.ubj"
    path.write_bytes(b"{}")
    with pytest.raises(ArtifactError, match="not a model that Perennial wrote"):
        trained_model.load_model_file(path, object_store.digest(str(path)), threads=1, name="toy")
