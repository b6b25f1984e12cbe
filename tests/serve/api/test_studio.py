"""The studio's door: its files and no others, nothing from elsewhere, facts and reports for those who may ask."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copytree

import pytest
from litestar import Litestar
from litestar.testing import TestClient

from stillhouse.diffusion import SAMPLERS
from stillhouse.pipelines.load import find_pipeline
from stillhouse.serve.api import studio
from stillhouse.serve.api.app import make_app
from stillhouse.serve.service import Service, make_service
from stillhouse.serve.settings import ServerSettings, TierSettings
from stillhouse.serve.store.api_keys import add_key
from tests.captions import parse_caption

Client = TestClient[Litestar]
REPORT = b"<!doctype html><title>a report</title><style>p { color: red }</style><p>2x as fast</p>"
ADDRESSES = re.compile(r"""(?:src|href)="([^"]+)"|from "([^"]+)"|import "([^"]+)"|url\(([^)]+)\)""")


@contextmanager
def door(data: Path, **options: object) -> Iterator[tuple[Client, Service]]:
    """The application without its workers."""
    tiers = options.pop("tiers", {"free": TierSettings("shapes"), "pro": TierSettings("shapes", also=("free",))})
    service = make_service(ServerSettings(tiers, data=str(data), **options))  # type: ignore[arg-type]
    try:
        yield TestClient(make_app(service, studio.HANDLERS)), service
    finally:
        service.job_queue._thread.shutdown()
        service.connection.close()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with door(tmp_path / "data") as (client, _):
        yield client


@pytest.fixture
def reported(tmp_path: Path) -> Path:
    """The embedded model in a directory of its own, with a report."""
    directory = copytree(find_pipeline("shapes"), tmp_path / "pipeline")
    (directory / "report.html").write_bytes(REPORT)
    return directory


@pytest.mark.parametrize("name", sorted(studio.ASSETS))
def test_each_file_is_served_with_its_type_and_a_strict_policy(client: Client, name: str) -> None:
    answer = client.get(f"/studio/{name}")
    assert answer.status_code == 200
    assert answer.content == (studio.FILES / name).read_bytes()
    media = studio.ASSET_MEDIA_TYPES[Path(name).suffix]
    assert answer.headers["content-type"] == (f"{media}; charset=utf-8" if media.startswith("text/") else media)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-cache"
    assert "default-src" in answer.headers["content-security-policy"]


def test_the_page_is_at_the_root(client: Client) -> None:
    assert client.get("/").content == (studio.FILES / "index.html").read_bytes()


def test_the_studio_may_load_nothing_from_elsewhere_and_run_nothing_inline(client: Client) -> None:
    for page in ("/", "/docs"):
        policy = client.get(page).headers["content-security-policy"]
        assert policy.startswith("default-src 'self'; img-src 'self' blob: data:")
        assert "unsafe" not in policy and "http" not in policy


@pytest.mark.parametrize("name", sorted(studio.ASSETS))
def test_no_file_names_another_host_and_all_that_it_names_is_there(client: Client, name: str) -> None:
    text = studio.ASSETS[name].content.decode()
    assert set(re.findall(r"https?://[^\s\"'<>`)]+", text)) <= {"http://www.w3.org/2000/svg"}
    for found in ADDRESSES.findall(text):
        address = next(part for part in found if part)
        if address.startswith("#"):
            assert f'id="{address[1:]}"' in text
        else:
            path = address.replace("./", "/studio/", 1) if address.startswith("./") else address
            assert client.get(path).status_code == 200, path


@pytest.mark.parametrize("name", [name for name in studio.ASSETS if name.endswith(".html")])
def test_pages_hold_no_script_style_or_event_of_their_own(name: str) -> None:
    text = studio.ASSETS[name].content.decode()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=", text)


def test_what_a_browser_has_is_not_sent_again(client: Client) -> None:
    first = client.get("/studio/main.js")
    again = client.get("/studio/main.js", headers={"if-none-match": f'"other", W/{first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert client.get("/studio/main.js", headers={"if-none-match": '"other"'}).status_code == 200
    assert client.get("/studio/draw.js").headers["etag"] != first.headers["etag"]


@pytest.mark.parametrize(
    "name", ["..%2Fdoors%2Fapp.py", "%2e%2e/doors/app.py", "../doors/app.py", "%00", "main.js%00.html", "MAIN.JS"]
)
def test_only_its_own_files_are_served(client: Client, name: str) -> None:
    assert client.get(f"/studio/{name}").status_code == 404


def test_files_of_other_kinds_are_not_read(tmp_path: Path) -> None:
    for name in ("page.html", ".secret", "module.py", "old.js.orig"):
        (tmp_path / name).write_text("text", encoding="utf-8")
    assert set(studio.read_assets(tmp_path)) == {"page.html"}


def test_the_readable_page_and_the_document_are_neighbours(client: Client) -> None:
    page = client.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.content == (studio.FILES / "docs.html").read_bytes()
    document = client.get("/docs/openapi.json").json()
    assert "/v1/images/generations" in document["paths"] and "/v1/models/{name}/report" in document["paths"]
    assert not {"/", "/studio/{name}"} & set(document["paths"])


def test_facts_tell_what_the_models_do_not(client: Client) -> None:
    facts = client.get("/v1/studio").json()
    assert facts["is_authenticated"] and not facts["requires_key"]
    assert list(facts["samplers"]) == list(SAMPLERS)
    assert set(facts["models"]) == {"free", "pro"}
    assert not facts["models"]["pro"]["report"]
    for prompt in facts["models"]["pro"]["examples"]:
        assert str(parse_caption(prompt)) == prompt


def test_facts_are_told_to_whoever_has_no_key_as_far_as_they_are_no_secret(tmp_path: Path) -> None:
    with door(tmp_path, keys=True) as (client, service):
        key = service.job_queue._thread.submit(add_key, service.connection, "free").result()
        nobody = client.get("/v1/studio").json()
        assert nobody["requires_key"] and not nobody["is_authenticated"]
        assert nobody["models"] == {} and nobody["reason"] == ""
        wrong = client.get("/v1/studio", headers={"authorization": "Bearer still-no-key"}).json()
        assert not wrong["is_authenticated"] and "unknown API key" in wrong["reason"]
        known = client.get("/v1/studio", headers={"authorization": f"Bearer {key}"}).json()
        assert known["is_authenticated"] and set(known["models"]) == {"free"}


def test_a_report_is_served_as_it_is_and_can_run_nothing(tmp_path: Path, reported: Path) -> None:
    tiers = {"free": TierSettings("shapes"), "pro": TierSettings(str(reported))}
    with door(tmp_path / "data", tiers=tiers) as (client, _):
        answer = client.get("/v1/models/pro/report")
        assert (answer.status_code, answer.content) == (200, REPORT)
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "sandbox" in policy and "script-src" not in policy
        models = client.get("/v1/studio").json()["models"]
        assert (models["free"]["report"], models["pro"]["report"]) == (False, True)


def test_no_report_and_no_model_are_told_apart(client: Client) -> None:
    missing = client.get("/v1/models/pro/report")
    assert missing.status_code == 404 and "stillhouse accelerate" in missing.json()["error"]["message"]
    unknown = client.get("/v1/models/gold/report")
    assert unknown.status_code == 404 and "free, pro" in unknown.json()["error"]["message"]


def test_a_report_needs_a_key_where_pictures_do(tmp_path: Path, reported: Path) -> None:
    with door(tmp_path / "data", tiers={"pro": TierSettings(str(reported))}, keys=True) as (client, _):
        assert client.get("/v1/models/pro/report").status_code == 401
