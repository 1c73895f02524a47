"""docker-compose.yml and the configuration that it mounts, without a container engine.

The file's form is checked by the Compose specification's own schema; what the schema cannot see is
checked here: that names, files, ports, times and commands fit the service and one another.
"""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from service.cli import cli
from service.envelope_file import read_envelope
from service.settings import Settings
from ttc_core.corruptions import CORRUPTIONS
from ttc_core.datasets import Geometry, open_data
from ttc_core.envelope.clauses import BUILT_IN

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"
COMPOSE = yaml.safe_load(FILE.read_text())
SERVICES = COMPOSE["services"]
ONE_SHOT = ("replay",)
LONG_RUNNING = [name for name in SERVICES if name not in ONE_SHOT]
OURS = [name for name, service in SERVICES.items() if "build" in service]


def read_yaml(path):
    return yaml.safe_load((ROOT / "docker" / path).read_text())


def seconds(text):
    return float(re.fullmatch(r"(\d+)s", text)[1])


def each_service(names=tuple(SERVICES)):
    return pytest.mark.parametrize("service", [pytest.param(SERVICES[n], id=n) for n in names])


def test_it_is_valid_by_the_compose_schema():
    """The schema comes with check-jsonschema; a misspelt key fails."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, FILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_plain_up_needs_neither_a_gpu_nor_a_replay():
    """Both have a profile; the rest comes up by itself."""
    profiles = {name: service.get("profiles") for name, service in SERVICES.items()}
    assert profiles.pop("ttc-gpu") == ["gpu"]
    assert profiles.pop("replay") == ["replay"]
    assert profiles == dict.fromkeys(("ttc", "prometheus", "alertmanager", "grafana"))


@each_service()
def test_images_are_pinned_to_full_versions(service):
    """Ours carry the version of the package, and no registry is asked for them; others' name it."""
    pattern = r"(docker\.io/[a-z]+/)?[a-z-]+:v?(\d+\.\d+\.\d+)(-cpu|-cuda)?"
    registry, version, _ = re.fullmatch(pattern, service["image"]).groups()
    assert (registry is None) == ("build" in service)
    if "build" in service:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert version == project["version"]
        assert service["image"].endswith(f"-{service['build']['target']}")
        assert service["pull_policy"] == "build"


@each_service(OURS)
def test_ours_are_built_from_targets_of_the_dockerfile(service):
    """The context is the root of the repository."""
    build = service["build"]
    assert build["context"] == "."
    assert f" AS {build['target']}\n" in (ROOT / build["dockerfile"]).read_text()


@each_service()
def test_ports_are_published_on_this_machine_only(service):
    """Anybody who may post images steers the model."""
    for port in service.get("ports", ()):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)


def test_no_port_is_published_twice():
    """The GPU's service may run beside the CPU's."""
    ports = [p.rsplit(":", 1)[0] for s in SERVICES.values() for p in s.get("ports", ())]
    assert len(ports) == len(set(ports))


@each_service()
def test_mounts_exist_and_are_read_only(service):
    """Docker would make a missing file into an empty folder; what is written goes to volumes."""
    for volume in service.get("volumes", ()):
        source, target, *options = volume.split(":")
        assert target.startswith("/")
        if source.startswith("."):
            assert (ROOT / source).exists()
            assert options == ["ro"]
        else:
            assert source in COMPOSE["volumes"]
            assert options == []


def test_the_envelope_that_is_mounted_holds_and_is_the_built_in_one():
    """Until somebody edits it."""
    file = ROOT / "docker" / "ttc" / "envelope.toml"
    assert read_envelope(file) == BUILT_IN
    for name in ("ttc", "ttc-gpu"):
        assert "./docker/ttc:/etc/ttc:ro" in SERVICES[name]["volumes"]
        assert "TTC_ENVELOPE" in SERVICES[name]["environment"]
    assert "/etc/ttc/envelope.toml" in FILE.read_text()


def test_every_volume_has_one_user():
    """Two writers of one state folder would overwrite each other's."""
    used = [v.split(":")[0] for s in SERVICES.values() for v in s.get("volumes", ())]
    assert sorted(v for v in used if not v.startswith(".")) == sorted(COMPOSE["volumes"])


@each_service()
def test_every_container_has_as_few_rights_as_it_needs(service):
    """A read-only root, no capabilities, bounded memory and logs."""
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert [entry.split(":")[0] for entry in service["tmpfs"]] == ["/tmp"]
    assert service["mem_limit"]
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}


@each_service(LONG_RUNNING)
def test_what_runs_on_is_checked_and_restarted(service):
    """The service's own check is in its image."""
    assert service["restart"] == "unless-stopped"
    if "build" in service:
        assert "\nHEALTHCHECK " in (ROOT / service["build"]["dockerfile"]).read_text()
        assert "healthcheck" not in service
    else:
        port = service["ports"][0].rsplit(":", 1)[1]
        assert f"http://127.0.0.1:{port}/" in service["healthcheck"]["test"][-1]
        # Else busybox asks the proxy, where an engine passes one on.
        assert service["healthcheck"]["test"][:4] == ["CMD", "wget", "-Y", "off"]


@each_service(ONE_SHOT)
def test_what_runs_once_is_not_started_again(service):
    """And has no server that could be asked for its health."""
    assert service["restart"] == "no"
    assert service["healthcheck"] == {"disable": True}


@each_service(OURS)
def test_the_grace_period_is_longer_than_draining_takes(service):
    """Else Docker kills what is still answering or saving."""
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    needed = defaults["drain_delay"] + defaults["drain_timeout"]
    assert seconds(service["stop_grace_period"]) >= needed + 10
    assert not {"TTC_DRAIN_DELAY", "TTC_DRAIN_TIMEOUT"} & service["environment"].keys()
    assert service["init"] is True


@each_service(OURS)
def test_variables_are_settings_of_the_service(service):
    """A misspelt one would be ignored without a word."""
    known = {f"TTC_{name.upper()}" for name in Settings.model_fields}
    assert service["environment"].keys() <= known


@each_service()
def test_no_secret_is_written_down(service):
    """Passwords and tokens come from outside, or are not set."""
    for name, value in (service.get("environment") or {}).items():
        if re.search("TOKEN|PASSWORD|SECRET", name):
            assert value is None


@each_service()
def test_it_waits_for_services_that_exist_and_have_a_health_check(service):
    """In the same profile or in none, so that what is waited for is started too."""
    for name, how in service.get("depends_on", {}).items():
        assert how == {"condition": "service_healthy"}
        assert name in LONG_RUNNING
        assert "profiles" not in SERVICES[name]


def test_the_gpu_is_reserved():
    """And a service without it fails, rather than to fall back to the CPU unseen."""
    (device,) = SERVICES["ttc-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert SERVICES["ttc-gpu"]["environment"]["TTC_DEVICE"] == "cuda"


def test_the_replay_is_a_command_that_gives_ten_minutes_of_curves(monkeypatch):
    """The real command line takes it: all corruptions, in open mode, with labels, on its stream."""
    plans = []

    async def keep(plan, *_):
        plans.append(plan)

    monkeypatch.setattr("service.replay.replay", keep)
    monkeypatch.delenv("TTC_TOKEN", raising=False)
    cli.main(SERVICES["replay"]["command"], standalone_mode=False)
    (plan,) = plans
    assert plan.url == "http://ttc:8000"
    assert plan.mode == "open"
    assert plan.corruptions == CORRUPTIONS
    images = len(open_data(plan.data, Geometry(32)).open("clean", plan.severity).labels)
    assert 10 * 60 <= images * len(CORRUPTIONS) / plan.rate <= 20 * 60


def test_prometheus_finds_the_services_by_name():
    """Those with a profile as well, without being told which of them run."""
    jobs = {
        job["job_name"]: job for job in read_yaml("prometheus/prometheus.yml")["scrape_configs"]
    }
    assert jobs.keys() == {"ttc", "prometheus", "alertmanager"}
    (discovery,) = jobs["ttc"]["dns_sd_configs"]
    served = {name for name in OURS if name not in ONE_SHOT}
    assert set(discovery["names"]) == served
    for name in served:
        assert SERVICES[name]["ports"][0].endswith(f":{discovery['port']}")


def test_configurations_name_one_another():
    """Prometheus its Alertmanager, Grafana its data source, by the names of the services."""
    prometheus = read_yaml("prometheus/prometheus.yml")
    assert prometheus["alerting"]["alertmanagers"] == [
        {"static_configs": [{"targets": ["alertmanager:9093"]}]}
    ]
    (source,) = read_yaml("grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert (source["uid"], source["url"]) == ("prometheus", "http://prometheus:9090")
    assert source["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]
    (provider,) = read_yaml("grafana/provisioning/dashboards/ttc.yml")["providers"]
    folder = provider["options"]["path"]
    assert f"./docker/grafana/dashboards:{folder}:ro" in SERVICES["grafana"]["volumes"]


def test_nobody_is_told_of_alerts_until_somebody_is_named():
    """The stack as it comes sends nothing to anyone."""
    (receiver,) = read_yaml("alertmanager/alertmanager.yml")["receivers"]
    assert receiver.keys() == {"name"}


@pytest.mark.parametrize(
    "command",
    [
        ("promtool", "check", "config", "prometheus/prometheus.yml"),
        ("amtool", "check-config", "alertmanager/alertmanager.yml"),
    ],
    ids=lambda command: command[0],
)
def test_their_own_tools_accept_the_configurations(command):
    """Prometheus' and Alertmanager's."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, cwd=ROOT / "docker", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
