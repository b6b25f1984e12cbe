"""A backend that another package adds in one file has everything that a backend of Stillhouse's own has."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stillhouse.accelerate.calibration.calibration_data import Probe
from stillhouse.accelerate.evaluation.build import build_graph
from stillhouse.accelerate.records.candidate import Candidate
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.resume import package_versions
from stillhouse.accelerate.search.candidates import plan_candidates
from stillhouse.backends import RunnerOptions, backends, open_runner
from stillhouse.backends.registry import compiles_per, device_arrays, find_backend
from stillhouse.errors import BackendFailed, InvalidRequest
from stillhouse.pipelines.adapters import _check_backend
from stillhouse.pipelines.manifest import Component
from tests.accelerate.search.test_candidates import ENVIRONMENT
from tests.backends.networks import unet, unet_feeds, write_model

pytestmark = pytest.mark.usefixtures("outside")


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is installed."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "outside"))


def test_it_has_a_row_and_opens_networks(tmp_path: Path) -> None:
    row = next(row for row in backends() if row.name == "outside")
    assert (row.version, row.reason, row.install) == ("1.0", None, "pip install outside-backend")
    graph = write_model(unet(), tmp_path / "model.onnx")
    runner = open_runner(graph, "outside", RunnerOptions(threads=1))
    assert runner.backend == "outside"
    expected = open_runner(graph, options=RunnerOptions(threads=1))(unet_feeds(2))
    for name, result in runner(unet_feeds(2)).items():
        assert np.array_equal(result, expected[name])
    with pytest.raises(InvalidRequest, match="streams is 2 on outside; allowed: 1; more than 1 only on openvino"):
        open_runner(graph, "outside", RunnerOptions(streams=2))


def test_its_candidates_are_planned_with_their_options_and_reasons() -> None:
    row = next(row for row in backends() if row.name == "outside")
    environment = replace(ENVIRONMENT, backends={**ENVIRONMENT.backends, "outside": row}, rows=(1, 4))
    planned = [entry for entry in plan_candidates("denoiser", environment) if _candidate(entry).backend == "outside"]
    quick, copied, exact = planned
    assert quick == Candidate("denoiser", "outside", options={"mode": "quick", "shapes": "static", "rows": "1,4"})
    assert copied == Candidate("denoiser", "outside", "copied")
    assert isinstance(exact, Trial) and exact.reason == "exact is not worth a try"
    ranked = [_candidate(entry).backend for entry in plan_candidates("denoiser", environment)]
    assert ranked.index("outside") < ranked.index("openvino"), "its rank is less"
    assert [_candidate(entry).options for entry in plan_candidates("text_encoder", environment)].count(
        {"mode": "quick", "shapes": "static"}
    ) == 1


def _candidate(entry: Trial | Candidate) -> Candidate:
    return entry.candidate if isinstance(entry, Trial) else entry


def test_its_install_line_is_in_the_reason_where_it_is_not_ready() -> None:
    row = replace(find_backend("outside").status(), reason="its licence has ended")
    planned = plan_candidates("denoiser", replace(ENVIRONMENT, backends={"outside": row}))
    reasons = {entry.reason for entry in planned if isinstance(entry, Trial) and entry.candidate.backend == "outside"}
    assert reasons == {"outside is not available: its licence has ended; pip install outside-backend"}


def test_its_recipe_is_built(tmp_path: Path) -> None:
    graph = write_model(unet(), tmp_path / "model.onnx")
    probes = [Probe("first", unet_feeds(2)), Probe("second", unet_feeds(2))]
    built, _ = build_graph(Candidate("denoiser", "outside", "copied", keep=("a",)), graph, tmp_path / "made", probes)
    assert built == tmp_path / "made/copied.onnx" and built.read_bytes() == graph.read_bytes()
    assert (tmp_path / "made/calls.txt").read_text() == "2 calls, 1 nodes kept"
    with pytest.raises(InvalidRequest, match="no recipe of outside 'f16'; allowed: copied"):
        build_graph(Candidate("denoiser", "outside", "f16"), graph, tmp_path / "other", probes)


def test_it_says_what_it_compiles_for_and_what_else_it_can_do() -> None:
    assert device_arrays("outside", {}) is None
    assert [compiles_per("outside", {"mode": mode}) for mode in ("exact", "quick")] == ["shape", "batch"]
    assert package_versions()["outside-backend"] == "1.0"
    _check_backend("unet", Component("model.onnx", "", "outside"))
    with pytest.raises(InvalidRequest, match="runs on outside with mode quick; .*; on outside with mode exact"):
        _check_backend("unet", Component("model.onnx", "", "outside", settings={"mode": "quick"}))


@pytest.mark.parametrize(
    ("name", "reason"),
    [("broken", "it is installed but broken: "), ("nothing", "its entry point .* is not a Backend of that name")],
)
def test_an_entry_point_that_leads_to_no_backend_is_a_row_with_the_reason(
    name: str, reason: str, tmp_path: Path
) -> None:
    row = next(row for row in backends() if row.name == name)
    assert row.reason and row.reason.startswith(reason.partition(" .*")[0])
    with pytest.raises(BackendFailed, match=f"{name} cannot open .*{reason}"):
        open_runner(write_model(unet(), tmp_path / "model.onnx"), name)
    planned = plan_candidates("denoiser", replace(ENVIRONMENT, backends={name: row}))
    assert [entry.reason for entry in planned if isinstance(entry, Trial) and entry.candidate.backend == name]
