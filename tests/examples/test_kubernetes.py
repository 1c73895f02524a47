"""The manifests: valid by Kubernetes' own schemas; what they name fits the service and itself."""

import re
import tomllib

import kubernetes_validate
import pytest
import yaml

from service.app import build
from service.settings import Settings
from tests.examples.conftest import EXAMPLES, ROOT
from tests.fixtures.networks import make_model
from ttc_core.methods import create

FOLDER = EXAMPLES / "kubernetes"
MANIFESTS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.iterdir())}
POD = MANIFESTS["deployment"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
GIVEN = MANIFESTS["configmap"]["data"]
VERSIONS = ("1.29", kubernetes_validate.latest_version())


def seconds(probe):
    """How long a probe lets it go wrong."""
    return probe["periodSeconds"] * probe["failureThreshold"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", MANIFESTS)
def test_it_is_valid_by_the_schema_of_an_old_and_of_the_latest_kubernetes(name, version):
    """Strictly: a misspelt key is an error."""
    kubernetes_validate.validate(MANIFESTS[name], version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_schema_sees_a_misspelt_key(version):
    """Else the test above would say nothing."""
    spec = {**MANIFESTS["deployment"]["spec"], "replica": 1}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(
            {**MANIFESTS["deployment"], "spec": spec}, version, strict=True
        )


def test_every_setting_is_one_and_takes_its_value(monkeypatch):
    """As the service reads them: from its environment."""
    assert {name.removeprefix("TTC_").lower() for name in GIVEN} <= set(Settings.model_fields)
    for name, value in GIVEN.items():
        assert isinstance(value, str), name
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.threads == int(CONTAINER["resources"]["requests"]["cpu"])
    grace = POD["terminationGracePeriodSeconds"]
    assert settings.drain_delay + settings.drain_timeout < grace
    # Whoever balances has seen that it is not ready before it refuses.
    assert seconds(CONTAINER["readinessProbe"]) < settings.drain_delay


def test_probes_ask_routes_of_the_service():
    app = build(Settings(), create("source", make_model("batch-norm")))
    paths = app.openapi()["paths"]
    named = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    asked = {}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        get = CONTAINER[probe]["httpGet"]
        assert get["path"] in paths
        assert named[get["port"]] == Settings().port
        asked[probe] = get["path"]
    assert (asked["readinessProbe"], asked["livenessProbe"]) == ("/readyz", "/healthz")


def test_what_is_named_is_there():
    """The Service finds the pod, the pod its volumes, its settings and its port."""
    labels = MANIFESTS["deployment"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        MANIFESTS["service"]["spec"]["selector"],
        MANIFESTS["deployment"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    ports = {port["name"] for port in CONTAINER["ports"]}
    assert {port["targetPort"] for port in MANIFESTS["service"]["spec"]["ports"]} <= ports
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in CONTAINER["volumeMounts"]}
    assert set(mounts.values()) == set(volumes)
    claim = volumes[mounts["/state"]]["persistentVolumeClaim"]["claimName"]
    assert claim == MANIFESTS["persistentvolumeclaim"]["metadata"]["name"]
    config, secret = CONTAINER["envFrom"]
    assert config["configMapRef"]["name"] == MANIFESTS["configmap"]["metadata"]["name"]
    assert secret["secretRef"]["optional"], "a token is no duty"


def test_it_runs_as_the_image_is_built():
    """Its user, its version, and the only folders that are written to."""
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert CONTAINER["image"] == f"ttc-service:{version}-cpu"
    user, group = re.search(r"^USER (\d+):(\d+)$", dockerfile, re.MULTILINE).groups()
    security = POD["securityContext"]
    assert (security["runAsUser"], security["runAsGroup"]) == (int(user), int(group))
    assert security["fsGroup"] == int(group), "the volume is its to write"
    assert "TTC_STATE_DIR=/state" in dockerfile
    assert {mount["mountPath"] for mount in CONTAINER["volumeMounts"]} == {"/state", "/tmp"}


def test_it_has_as_few_rights_as_it_needs():
    """As Kubernetes' restricted profile asks."""
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert POD["automountServiceAccountToken"] is False
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert CONTAINER["resources"]["limits"]["memory"]


def test_one_pod_at_a_time_writes_the_states():
    """The old one has saved before the new one reads."""
    spec = MANIFESTS["deployment"]["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


def test_the_services_name_sets_no_variable_of_ours():
    """Kubernetes would set TTC_PORT to an address for each pod that starts after the Service."""
    assert MANIFESTS["service"]["metadata"]["name"].upper() == "TTC"
    assert POD["enableServiceLinks"] is False
