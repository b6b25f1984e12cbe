"""Fuzzing of the OpenAPI document with valid and invalid requests: no server error, no timeout."""

import http.client
import json
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


@pytest.mark.parametrize(
    ("path", "content_type", "body"),
    [
        ("/v1/images/generations", "application/json", b'{"prompt":"\xff"}'),
        ("/v1/jobs", "application/json", b'{"prompt":"\xff"}'),
        (
            "/v1/images/edits",
            "multipart/form-data; boundary=B",
            b'--B\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n\xff\r\n--B--\r\n',
        ),
        ("/v2/models/free/infer", "application/json", b'{"inputs":[{"name":"\xff"}]}'),
    ],
)
def test_bytes_that_are_no_utf_8_are_refused(server: Running, path: str, content_type: str, body: bytes) -> None:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=PATIENCE)
    try:
        connection.request("POST", path, body, {"Content-Type": content_type})
        response = connection.getresponse()
        answer = json.loads(response.read())
    finally:
        connection.close()
    assert response.status == 400, answer
    assert "no UTF-8" in str(answer) or path.startswith("/v2")
    assert not [line for line in server.log if line.get("level") == "error"]
