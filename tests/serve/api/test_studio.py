"""The studio's routes: its files only, nothing from other hosts, facts and reports for authorised clients."""

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
def app_client(data: Path, **options: object) -> Iterator[tuple[Client, Service]]:
    """Return a client of the application without workers."""
    tiers = options.pop("tiers", {"free": TierSettings("shapes"), "pro": TierSettings("shapes", also=("free",))})
    service = make_service(ServerSettings(tiers, data=str(data), **options))  # type: ignore[arg-type]
    try:
        yield TestClient(make_app(service, studio.HANDLERS)), service
    finally:
        service.job_queue._thread.shutdown()
        service.connection.close()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with app_client(tmp_path / "data") as (client, _):
        yield client


@pytest.fixture
def reported(tmp_path: Path) -> Path:
    """Copy the embedded model to a directory and add a report."""
    directory = copytree(find_pipeline("shapes"), tmp_path / "pipeline")
    (directory / "report.html").write_bytes(REPORT)
    return directory


@pytest.mark.parametrize("name", sorted(studio.ASSETS))
def test_files_have_media_type_and_strict_policy(client: Client, name: str) -> None:
    answer = client.get(f"/studio/{name}")
    assert answer.status_code == 200
    assert answer.content == (studio.FILES / name).read_bytes()
    media = studio.ASSET_MEDIA_TYPES[Path(name).suffix]
    assert answer.headers["content-type"] == (f"{media}; charset=utf-8" if media.startswith("text/") else media)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-cache"
    assert "default-src" in answer.headers["content-security-policy"]


def test_page_is_at_the_root(client: Client) -> None:
    assert client.get("/").content == (studio.FILES / "index.html").read_bytes()


def test_page_policy_forbids_other_hosts_and_inline_code(client: Client) -> None:
    for page in ("/", "/docs"):
        policy = client.get(page).headers["content-security-policy"]
        assert policy.startswith("default-src 'self'; img-src 'self' blob: data:")
        assert "unsafe" not in policy and "http" not in policy


@pytest.mark.parametrize("name", sorted(studio.ASSETS))
def test_files_reference_only_existing_local_files(client: Client, name: str) -> None:
    text = studio.ASSETS[name].content.decode()
    assert set(re.findall(r"https?://[^\s\"'<>`)]+", text)) <= {"http://www.w3.org/2000/svg"}
    for match in ADDRESSES.findall(text):
        address = next(part for part in match if part)
        if address.startswith("#"):
            assert f'id="{address[1:]}"' in text
        else:
            path = address.replace("./", "/studio/", 1) if address.startswith("./") else address
            assert client.get(path).status_code == 200, path


@pytest.mark.parametrize("name", [name for name in studio.ASSETS if name.endswith(".html")])
def test_pages_have_no_inline_scripts_styles_or_events(name: str) -> None:
    text = studio.ASSETS[name].content.decode()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=", text)


def test_cached_file_is_not_sent_again(client: Client) -> None:
    first = client.get("/studio/main.js")
    again = client.get("/studio/main.js", headers={"if-none-match": f'"other", W/{first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert client.get("/studio/main.js", headers={"if-none-match": '"other"'}).status_code == 200
    assert client.get("/studio/generate.js").headers["etag"] != first.headers["etag"]


@pytest.mark.parametrize(
    "name", ["..%2Fdoors%2Fapp.py", "%2e%2e/doors/app.py", "../doors/app.py", "%00", "main.js%00.html", "MAIN.JS"]
)
def test_only_studio_files_are_served(client: Client, name: str) -> None:
    assert client.get(f"/studio/{name}").status_code == 404


def test_files_of_unknown_type_are_not_read(tmp_path: Path) -> None:
    for name in ("page.html", ".secret", "module.py", "old.js.orig"):
        (tmp_path / name).write_text("text", encoding="utf-8")
    assert set(studio.read_assets(tmp_path)) == {"page.html"}


def test_docs_page_and_openapi_document(client: Client) -> None:
    page = client.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.content == (studio.FILES / "docs.html").read_bytes()
    document = client.get("/docs/openapi.json").json()
    assert "/v1/images/generations" in document["paths"] and "/v1/models/{name}/report" in document["paths"]
    assert not {"/", "/studio/{name}"} & set(document["paths"])


def test_facts_complement_the_models(client: Client) -> None:
    facts = client.get("/v1/studio").json()
    assert facts["is_authenticated"] and not facts["requires_key"]
    assert list(facts["samplers"]) == list(SAMPLERS)
    assert set(facts["models"]) == {"free", "pro"}
    assert not facts["models"]["pro"]["report"]
    for prompt in facts["models"]["pro"]["examples"]:
        assert str(parse_caption(prompt)) == prompt


def test_facts_without_a_key_are_limited(tmp_path: Path) -> None:
    with app_client(tmp_path, keys=True) as (client, service):
        key = service.job_queue._thread.submit(add_key, service.connection, "free").result()
        nobody = client.get("/v1/studio").json()
        assert nobody["requires_key"] and not nobody["is_authenticated"]
        assert nobody["models"] == {} and nobody["reason"] == ""
        wrong = client.get("/v1/studio", headers={"authorization": "Bearer still-no-key"}).json()
        assert not wrong["is_authenticated"] and "the API key is unknown or revoked" in wrong["reason"]
        facts_ = client.get("/v1/studio", headers={"authorization": f"Bearer {key}"}).json()
        assert facts_["is_authenticated"] and set(facts_["models"]) == {"free"}


def test_report_is_served_sandboxed(tmp_path: Path, reported: Path) -> None:
    tiers = {"free": TierSettings("shapes"), "pro": TierSettings(str(reported))}
    with app_client(tmp_path / "data", tiers=tiers) as (client, _):
        answer = client.get("/v1/models/pro/report")
        assert (answer.status_code, answer.content) == (200, REPORT)
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "sandbox" in policy and "script-src" not in policy
        models = client.get("/v1/studio").json()["models"]
        assert (models["free"]["report"], models["pro"]["report"]) == (False, True)


def test_missing_report_and_missing_model_differ(client: Client) -> None:
    missing = client.get("/v1/models/pro/report")
    assert missing.status_code == 404 and "stillhouse accelerate" in missing.json()["error"]["message"]
    unknown = client.get("/v1/models/gold/report")
    assert unknown.status_code == 404 and "free, pro" in unknown.json()["error"]["message"]


def test_report_requires_a_key(tmp_path: Path, reported: Path) -> None:
    with app_client(tmp_path / "data", tiers={"pro": TierSettings(str(reported))}, keys=True) as (client, _):
        assert client.get("/v1/models/pro/report").status_code == 401
