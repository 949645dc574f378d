"""What a run may read and ask is the deployment's to say, not the form's."""

from pathlib import Path
from typing import Any

import pytest

from tasks.config import Params, parse_params, read_raw, resolve
from tasks.errors import ConfigError
from tasks.publish.allowed import Allowed, require_allowed
from tasks.publish.open_run import Deployment, RunRequest, plan_run


def params_with(changes: dict[str, Any]) -> Params:
    return parse_params(resolve(read_raw(Path("params.yaml")), "test", changes))


def source(path: object, **more: Any) -> dict[str, Any]:
    return {"ingest": {"sources": [{"name": "x", "path": str(path), **more}]}}


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    """A folder `open` that is allowed, beside one that is not, with a link from the one to the other."""
    for name in ("open/images", "open/more", "closed/images"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "open" / "link").symlink_to(tmp_path / "closed")
    (tmp_path / "closed" / "a.tar").touch()
    (tmp_path / "open" / "a.tar").symlink_to(tmp_path / "closed" / "a.tar")
    (tmp_path / "opened").mkdir()
    return tmp_path


def allowed_by(roots: Path, **environment: str) -> Allowed:
    stated = {"MEGAPAIRS_SOURCE_ROOTS": f"{roots / 'open'},s3://bucket/images", **environment}
    return Allowed.from_environment(stated, roots / "clone", roots)


@pytest.mark.parametrize(
    "path", ["{}/open", "{}/open/images", "{}/open/*/nothing", "open/images", "s3://bucket/images/a"]
)
def test_what_lies_below_a_root_is_read(path: str, roots: Path):
    require_allowed(params_with(source(path.format(roots))), allowed_by(roots))


@pytest.mark.parametrize(
    "path",
    [
        "/etc",
        "{}/closed",
        "{}/opened",  # a root is a folder, not the beginning of a name
        "{}",
        "{}/open/../closed",
        "{}/open/link/images",
        "{}/open/link",
        "{}/open/*.tar",  # matches a link to a file elsewhere
        "{}/o*n/../closed/*.tar",
        "{}/open/{{a,b}}.tar",
        "{}/closed/*.tar",
        "{}/{{open,closed}}/*.tar",
        "../closed",
        "s3://bucket/images-private",
        "s3://bucket/images/../secret",
        "s3://other/images",
        "file:///etc",
    ],
)
def test_what_does_not_is_refused_as_a_source(path: str, roots: Path):
    with pytest.raises(ConfigError, match="ingest.sources.x: .* is not in a folder that this deployment reads from"):
        require_allowed(params_with(source(path.format(roots))), allowed_by(roots))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("ingest.takedown", {"ingest": {"takedown": "/etc/passwd"}}),
        ("ingest.blocklists", {"ingest": {"blocklists": ["/etc/passwd"]}}),
        ("ingest.benchmark_hashes", {"ingest": {"benchmark_hashes": ["/etc/passwd"]}}),
        ("evaluate.benchmark", {"evaluate": {"benchmark": "/etc"}}),
        ("evaluate.truth", {"evaluate": {"truth": "/etc"}}),
        (
            "train.datasets.d.path",
            {"train": {"datasets": [{"name": "d", "format": "megapairs", "path": "/etc", "images": "open"}]}},
        ),
        ("caption.prompts", {"caption": {"prompts": "../../../etc"}}),
        ("caption.prompts", {"caption": {"prompts": "/etc"}}),
        ("caption.canaries", {"caption": {"canaries": "/etc"}}),
        ("caption.model", {"caption": {"model": "../../model"}}),
        ("train.base_model", {"train": {"base_model": "/etc"}}),
        ("train.teacher.model", {"train": {"teacher": {"model": "/etc"}}}),
    ],
)
def test_every_parameter_that_names_a_file_is_held_to_the_roots(name: str, changes: dict[str, Any], roots: Path):
    inside = source(roots / "open")
    merged = {section: {**inside.get(section, {}), **changes.get(section, {})} for section in {*inside, *changes}}
    with pytest.raises(ConfigError, match=name):
        require_allowed(params_with(merged), allowed_by(roots))


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000/v1", "http://[::1]:1/v1", "http://localhost/v1", "http://VLLM/v1"]
)
def test_model_servers_of_the_deployment_and_of_this_machine_are_asked(url: str, roots: Path):
    changes = {**source(roots / "open"), "caption": {"url": url}}
    require_allowed(params_with(changes), allowed_by(roots, MEGAPAIRS_MODEL_HOSTS="vllm:8000, other"))


@pytest.mark.parametrize("key", ["caption.url", "caption.writer_url", "judge.url"])
@pytest.mark.parametrize(
    "url",
    [
        "http://elsewhere.example/v1",
        "http://127.0.0.1:8000/v1,http://elsewhere.example/v1",
        "http://vllm.elsewhere.example/v1",
        "http://localhost.elsewhere.example/v1",
        "http://169.254.169.254/latest",
        "file:///etc/passwd",
        "vllm:8000",
        "http:///v1",
        "http://[127.0.0.1/v1",
    ],
)
def test_other_hosts_are_refused(key: str, url: str, roots: Path):
    section, name = key.split(".")
    changes = {**source(roots / "open"), section: {name: url}}
    with pytest.raises(ConfigError, match=rf"{key}'?: .*(is no model server|expected http)"):  # some when parsed
        require_allowed(params_with(changes), allowed_by(roots, MEGAPAIRS_MODEL_HOSTS="vllm"))


@pytest.mark.parametrize("url", ["http://me:secret@vllm/v1", "http://vllm@127.0.0.1/v1", "http://127.0.0.1\\@vllm/v1"])
def test_credentials_in_an_address_are_refused_and_not_repeated(url: str, roots: Path):
    with pytest.raises(ConfigError, match="caption.url.*holds a user or a password") as error:
        require_allowed(params_with({**source(roots / "open"), "caption": {"url": url}}), allowed_by(roots))
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("more", [{"endpoint_url": "http://10.0.0.1"}, {"allow_hosts": ["169.254.169.254"]}])
def test_where_roots_are_stated_a_source_brings_no_server_or_private_host_of_its_own(more: dict[str, Any], roots: Path):
    params = params_with(source(roots / "open", **more))
    with pytest.raises(ConfigError, match=next(iter(more))):
        require_allowed(params, allowed_by(roots))
    require_allowed(params, allowed_by(roots).also(params.model_dump(mode="json", by_alias=True)))


def test_what_the_deployed_parameters_name_is_allowed(roots: Path):
    deployed = {**source(roots / "closed"), "caption": {"url": "http://gpu.example/v1"}}
    raw = params_with(deployed).model_dump(mode="json", by_alias=True)
    require_allowed(params_with({**deployed, **source(roots / "closed" / "images")}), allowed_by(roots).also(raw))


def test_without_roots_a_laptop_reads_its_own_folders_but_no_systems_and_no_hidden_ones(
    roots: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
):
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    allowed = Allowed.from_environment({}, roots / "clone", roots / "open")
    for path in (home / "photos", roots / "closed", "images", "/data/shop", "/mnt/disk/a", "s3://any/where"):
        assert allowed.has_path(str(path))
    for path in (home / ".ssh", home / "a" / ".cache", "/mnt/.hidden/a", "/etc", "/proc/self/environ", "/"):
        assert not allowed.has_path(str(path))


def test_a_user_without_a_home_and_a_clone_at_the_top_do_not_open_everything(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/")
    allowed = Allowed.from_environment({}, Path("/dataset"), Path("/"))
    assert not allowed.has_path("/etc") and allowed.has_path("/data/shop")


def test_a_root_that_is_not_absolute_is_refused(roots: Path):
    with pytest.raises(ConfigError, match="MEGAPAIRS_SOURCE_ROOTS: .* are not absolute"):
        allowed_by(roots, MEGAPAIRS_SOURCE_ROOTS="data:/mnt")


def test_etc_is_refused_when_a_run_opens(deployment: Path):
    clone = Deployment(deployment / "dataset", deployment / "refused")
    with pytest.raises(
        ConfigError, match="ingest.sources.etc: /etc is not in a folder that this deployment reads from"
    ):
        plan_run(RunRequest("r", "dataset", {"sources": "/etc"}), clone)
    conf = {"sources": str(deployment), "caption.url": "http://elsewhere.example/v1"}
    with pytest.raises(ConfigError, match="caption.url: .*elsewhere.example"):
        plan_run(RunRequest("r", "dataset", conf), clone)


def test_an_encoder_that_is_to_follow_is_held_to_the_same_folders(roots: Path):
    follower = {"kind": "image", "window": {"low": 0.3, "high": 0.9}}
    changes = {"ingest": {"sources": []}, "embed": {"next": {"semantic": {"model": "/etc/model", **follower}}}}
    with pytest.raises(ConfigError, match=r"embed.next.semantic.model: /etc/model leads out of the code"):
        require_allowed(params_with(changes), allowed_by(roots))
