"""Whatever the OpenAPI document allows, and much that it does not: no error of the server, and nothing that hangs."""

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
def test_no_request_is_an_error_of_the_server(server: Running, mode: str) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/docs/openapi.json")
    tried = 0
    for found in schema.get_all_operations():
        operation: Any = cast(Any, found).ok()
        with suppress(Unsatisfiable):  # there is no wrong way to ask for what takes nothing
            answered(operation.as_strategy(generation_mode=MODES[mode]), server)
            tried += 1
    assert tried >= 4
    assert server.is_ready()
    assert not [line for line in server.log if line.get("level") == "error"]


def answered(cases: Any, server: Running) -> None:
    """Every case gets an answer that is no error of the server."""

    @LIMITS
    @given(cases)
    def one(case: Any) -> None:
        response = case.call(timeout=PATIENCE)
        assert response.status_code < 500 or response.status_code == 503, (case.path, response.content)

    one()
