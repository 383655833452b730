"""The Kubernetes files are what KubeRay takes, with tokens, probes, a head that may die, and ports for those who need them."""

import json
import re
import warnings
from importlib.metadata import version
from pathlib import Path

import jsonschema
import pytest
import yaml

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray Serve itself uses parts of pydantic that are deprecated.
    from ray.serve.schema import ServeDeploySchema

    from services.replica import application

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "cluster" / "kuberay"
SCHEMAS = json.loads((Path(__file__).parent / "data" / "kuberay" / "v1.json").read_text())
WHOLE_SCHEMAS = ROOT.parent / "shared" / "schemas" / "kuberay"
"""KubeRay's own, where somebody has laid them beside the repository; the copy in tests/data is an extract of them."""
CLUSTERS = {"raycluster": ("RayCluster", ()), "rayjob": ("RayJob", ("rayClusterSpec",)), "rayservice": ("RayService", ("rayClusterConfig",))}


def documents(name):
    return list(yaml.safe_load_all((FOLDER / f"{name}.yaml").read_text()))


def cluster(name):
    (document,) = documents(name)
    spec = document["spec"]
    for key in CLUSTERS[name][1]:
        spec = spec[key]
    return spec


def pods(name):
    groups = [cluster(name)["headGroupSpec"], *cluster(name)["workerGroupSpecs"]]
    return [group["template"] for group in groups]


def violations(document):
    schema = {**SCHEMAS[document["kind"]], "$defs": SCHEMAS["$defs"]}
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(document)]


@pytest.mark.parametrize("name", CLUSTERS)
def test_is_what_the_operator_takes(name):
    (document,) = documents(name)
    assert document["kind"] == CLUSTERS[name][0]
    assert document["apiVersion"] == "ray.io/v1"
    assert violations(document) == []


def strict(schema):
    """As the API server reads it under strict validation: a field that is not named is refused, where fields are named at all."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(part) for key, part in schema.items() if not key.startswith("x-kubernetes-")}
    closed = isinstance(schema.get("properties"), dict) and "type" in schema and not schema.get("x-kubernetes-preserve-unknown-fields")
    return {"additionalProperties": False, **found} if closed else found


def test_is_what_the_operators_whole_schemas_take():
    if not (paths := sorted(WHOLE_SCHEMAS.glob("*.v1.json"))):
        pytest.skip(f"KubeRay's whole schemas are not at {WHOLE_SCHEMAS}")
    assert len(paths) == len(CLUSTERS)
    for path in paths:
        (document,) = documents(path.name.removesuffix("s.v1.json"))
        jsonschema.validate(document, strict(json.loads(path.read_text())))


def test_what_kuberay_stands_on_is_what_kubernetes_takes():
    """Each kind's API and the fields it cannot do without; the pod of Redis is held against KubeRay's own form of a pod."""
    spec = {
        "PersistentVolumeClaim": ("v1", {"accessModes", "resources"}),
        "Service": ("v1", {"selector", "ports"}),
        "StatefulSet": ("apps/v1", {"serviceName", "selector", "template"}),
        "NetworkPolicy": ("networking.k8s.io/v1", {"podSelector"}),
    }
    for document in documents("common"):
        api, required = spec[document["kind"]]
        assert document["apiVersion"] == api
        assert set(document) == {"apiVersion", "kind", "metadata", "spec"}
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", document["metadata"]["name"])
        assert required <= set(document["spec"])
    (redis,) = [document["spec"] for document in documents("common") if document["kind"] == "StatefulSet"]
    jsonschema.validate(redis["template"], {**SCHEMAS["$defs"]["template"], "$defs": SCHEMAS["$defs"]})
    (service,) = [document for document in documents("common") if document["kind"] == "Service"]
    assert redis["serviceName"] == service["metadata"]["name"]
    labels = redis["template"]["metadata"]["labels"]
    assert redis["selector"]["matchLabels"].items() <= labels.items()
    assert service["spec"]["selector"].items() <= labels.items()


def test_a_slip_is_seen():
    (document,) = documents("raycluster")
    document["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    document["spec"]["authOptions"]["mode"] = "none"
    del document["spec"]["workerGroupSpecs"][0]["groupName"]
    assert len(violations(document)) == 3


@pytest.mark.parametrize("name", CLUSTERS)
def test_asks_for_a_token_and_outlives_its_head(name):
    spec = cluster(name)
    assert spec["rayVersion"] == version("ray")
    assert spec["authOptions"]["mode"] == "token"
    secret = spec["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]["secretKeyRef"]["name"]
    address = re.fullmatch(r"redis://(.+):6379", spec["gcsFaultToleranceOptions"]["redisAddress"])[1]
    assert {(d["kind"], d["metadata"]["name"]) for d in documents("common")} >= {("Service", address), ("StatefulSet", secret)}


@pytest.mark.parametrize("name", CLUSTERS)
def test_pods_are_bare_of_privileges_and_share_the_storage(name):
    claims = {d["metadata"]["name"] for d in documents("common") if d["kind"] == "PersistentVolumeClaim"}
    for pod in pods(name):
        spec = pod["spec"]
        (container,) = spec["containers"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert not container["image"].endswith(":latest")
        assert ":" in container["image"]
        assert "PROXYMIX_TOKEN" in {variable["name"] for variable in container["env"]}  # The commands count on it.
        assert {v["persistentVolumeClaim"]["claimName"] for v in spec["volumes"] if "persistentVolumeClaim" in v} <= claims
        assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in spec["volumes"]}


def test_no_secret_is_in_a_file():
    for path in FOLDER.iterdir():
        assert "kind: Secret" not in path.read_text()


def test_the_service_is_the_projects_own():
    (document,) = documents("rayservice")
    config = ServeDeploySchema.model_validate(yaml.safe_load(document["spec"]["serveConfigV2"]))
    (app,) = config.applications
    assert app.import_path == f"{application.__module__}:{application.__name__}"
    assert [deployment.name for deployment in app.deployments] == ["controller"]
    assert application(app.args) is not None
    (plain,) = ServeDeploySchema.model_validate(yaml.safe_load((ROOT / "cluster" / "serve.yaml").read_text())).applications
    assert (plain.import_path, plain.args) == (app.import_path, app.args)
    head, *workers = (pod["spec"]["containers"][0] for pod in pods("rayservice"))
    port = config.http_options.port
    for container in (head, *workers):
        assert {"name": "serve", "containerPort": port} in container["ports"]
        assert any(variable["name"] == app.args["token_env"] for variable in container["env"])
    assert {worker["readinessProbe"]["httpGet"]["path"] for worker in workers} == {"/health/ready"}


def test_rays_ports_are_for_rays_own_pods():
    policies = {d["metadata"]["name"]: d["spec"] for d in documents("common") if d["kind"] == "NetworkPolicy"}
    rule = {
        "properties": {"podSelector": {}, "policyTypes": {}, "ingress": {}},
        "additionalProperties": False,
        "required": ["podSelector", "policyTypes"],
    }
    for policy in policies.values():
        jsonschema.validate(policy, rule)
        assert "Ingress" in policy["policyTypes"]
    own = policies["proxymix-ray"]["podSelector"]["matchLabels"]
    assert all(own.items() <= pod["metadata"]["labels"].items() for name in CLUSTERS for pod in pods(name))
    inner, *others = policies["proxymix-ray"]["ingress"]
    assert inner == {"from": [{"podSelector": {"matchLabels": own}}]}
    assert {port["port"] for other in others for port in other["ports"]} == {8265, 8123, 8080}
    (redis,) = policies["proxymix-redis"]["ingress"]
    assert redis == {"from": [{"podSelector": {"matchLabels": own}}], "ports": [{"port": 6379}]}
