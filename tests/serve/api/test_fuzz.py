"""Fuzzing of the OpenAPI document with valid and invalid requests: no server error, no timeout."""

import warnings
from contextlib import suppress
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

from tests.serve.running import Running

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the libraries that it brings
    import schemathesis

PATIENCE = 60.0
MODES = {mode.value: mode for mode in schemathesis.GenerationMode}
LIMITS = settings(
    max_examples=10,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", MODES)
def test_no_request_causes_a_server_error(server: Running, mode: str) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/docs/openapi.json")
    tried = 0
    for failures in schema.get_all_operations():
        operation: Any = cast(Any, failures).ok()
        with suppress(Unsatisfiable):  # there is no wrong way to ask for what takes nothing
            answered(operation.as_strategy(generation_mode=MODES[mode]), server)
            tried += 1
    assert tried >= 4
    assert server.is_ready()
    assert not [line for line in server.log if line.get("level") == "error"]


def answered(cases: Any, server: Running) -> None:
    """Check that every case is answered without a server error."""

    @LIMITS
    @given(cases)
    def case_(case: Any) -> None:
        response = case.call(timeout=PATIENCE)
        assert response.status_code < 500 or response.status_code == 503, (case.path, response.content)

    case_()
