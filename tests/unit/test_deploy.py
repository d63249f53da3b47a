"""What deploy/ ships agrees with the program and with itself. scripts/check has the linters look at
its form; tests/integration/test_rolling_restart.py runs nginx and HAProxy with it."""

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from tollway.metrics.described import described
from tollway.settings import Settings, load_settings

DEPLOY = Path(__file__).parents[2] / "deploy"
SECRETS = "/run/secrets/"
KUBERNETES = sorted(
    path for path in (DEPLOY / "kubernetes").glob("*.yaml") if path.name != "kustomization.yaml"
)


def documents(path: Path) -> Iterator[dict[str, Any]]:
    yield from yaml.safe_load_all(path.read_text())


def manifest(name: str) -> dict[str, Any]:
    (document,) = documents(DEPLOY / "kubernetes" / f"{name}.yaml")
    return document


def pod_of(name: str) -> dict[str, Any]:
    return manifest(name)["spec"]["template"]["spec"]


def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())


def configuration(text: str, folder: Path) -> Settings:
    """As the program reads it, with the secrets that it refers to."""
    secrets = {
        "database_url": "postgresql://tollway_server:x@postgres/tollway",
        "rate_store_url": "valkey://valkey:6379/0",
        "upstream_key": "sk-1",
    }
    for reference in re.findall(rf"file:({SECRETS}\S+)\"", text):
        path = folder / reference.removeprefix("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(secrets[path.name.replace("-", "_")])
    path = folder / "tollway.toml"
    path.write_text(text.replace(f"file:{SECRETS}", f"file:{folder}{SECRETS}"))
    return load_settings(path)


def of_compose(folder: Path) -> Settings:
    return configuration((DEPLOY / "compose" / "tollway.toml").read_text(), folder)


def of_kubernetes(folder: Path) -> Settings:
    return configuration(manifest("configmap")["data"]["tollway.toml"], folder)


@pytest.mark.parametrize("read", [of_compose, of_kubernetes])
def test_a_shipped_configuration_is_for_replicas(read: Any, tmp_path: Path) -> None:
    server = read(tmp_path).server

    assert server.database.scheme == "postgresql"
    assert server.rate_store.scheme == "valkey"
    assert (server.host, server.port) == ("0.0.0.0", 8080)  # noqa: S104 (read, not bound)
    assert server.access_log == "-"


def test_no_connection_is_idle_when_a_replica_behind_nginx_stops(tmp_path: Path) -> None:
    text = (DEPLOY / "nginx.conf").read_text()
    (idle,) = re.findall(r"^    keepalive_timeout (\d+)s;$", text, re.MULTILINE)[:1]

    assert int(idle) < of_compose(tmp_path).server.drain_delay_seconds


def test_a_container_is_given_the_time_to_drain(tmp_path: Path) -> None:
    server = of_compose(tmp_path).server
    for name in ("tollway-1", "tollway-2", "tollway-3"):
        grace = float(compose()["services"][name]["stop_grace_period"].removesuffix("s"))
        assert grace > server.drain_delay_seconds + server.drain_seconds


def test_a_pod_is_given_the_time_to_drain(tmp_path: Path) -> None:
    server = of_kubernetes(tmp_path).server
    grace = pod_of("statefulset")["terminationGracePeriodSeconds"]
    probe = pod_of("statefulset")["containers"][0]["readinessProbe"]

    assert grace > server.drain_delay_seconds + server.drain_seconds
    assert server.drain_delay_seconds > probe["periodSeconds"] * probe["failureThreshold"]


def test_a_service_is_given_the_time_to_drain() -> None:
    unit = (DEPLOY / "tollway.service").read_text()
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)

    assert int(seconds) > load_settings(None).server.drain_seconds


@pytest.mark.parametrize("name", ["statefulset", "migrate"])
def test_a_pod_can_do_nothing_but_its_work(name: str) -> None:
    pod = pod_of(name)
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container["resources"]["limits"]


def test_what_selects_pods_selects_those_that_serve() -> None:
    labels = manifest("statefulset")["spec"]["template"]["metadata"]["labels"]
    kustomization: Any = yaml.safe_load((DEPLOY / "kubernetes/kustomization.yaml").read_text())
    (common,) = kustomization["labels"]
    assert common["includeTemplates"]
    labels |= common["pairs"]
    selectors = [
        *(service["spec"]["selector"] for service in documents(DEPLOY / "kubernetes/service.yaml")),
        manifest("poddisruptionbudget")["spec"]["selector"]["matchLabels"],
        manifest("networkpolicy")["spec"]["podSelector"]["matchLabels"],
        manifest("statefulset")["spec"]["selector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector.items() <= labels.items()


def test_the_journal_of_a_replica_outlives_its_container() -> None:
    """While Postgres is away it is the only place where charges are."""
    claims = manifest("statefulset")["spec"]["volumeClaimTemplates"]
    (kept,) = [claim["metadata"]["name"] for claim in claims]
    mounts = pod_of("statefulset")["containers"][0]["volumeMounts"]
    assert {"name": kept, "mountPath": "/var/lib/tollway"} in mounts
    volumes = [
        volume
        for number in (1, 2, 3)
        for volume in compose()["services"][f"tollway-{number}"]["volumes"]
        if volume.endswith(":/var/lib/tollway")
    ]
    assert len(set(volumes)) == 3


def test_postgres_is_healthy_only_once_others_can_connect_to_it() -> None:
    """On its first start the image listens on a Unix socket alone, which `pg_isready` asks unless
    it is told a host."""
    check = compose()["services"]["postgres"]["healthcheck"]["test"]

    assert ("--host", "127.0.0.1") in pairwise(check)


def test_every_manifest_is_applied() -> None:
    kustomization: Any = yaml.safe_load((DEPLOY / "kubernetes/kustomization.yaml").read_text())

    assert sorted(kustomization["resources"]) == [path.name for path in KUBERNETES]


def test_the_autoscaler_asks_for_a_metric_that_there_is() -> None:
    metrics = manifest("horizontalpodautoscaler")["spec"]["metrics"]
    (name,) = [one["pods"]["metric"]["name"] for one in metrics if one["type"] == "Pods"]
    assert name in {metric.name for metric in described()}


def test_the_alerts_ask_for_metrics_and_labels_that_there_are() -> None:
    metrics = {metric.name: metric for metric in described()}
    groups: Any = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"]
    expressions = [rule["expr"] for group in groups for rule in group["rules"]]
    asked = re.findall(r"(tollway_\w+)(?:\{(\w+)=)?", " ".join(expressions))

    assert len(asked) >= len(expressions) - 1  # one asks for `up` alone
    for name, label in asked:
        assert name in metrics
        assert not label or label in metrics[name].labels


def test_no_secret_is_written_where_it_is_used() -> None:
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            assert not re.search(r"sk-|tw_|://[^/\s]*:[^/\s]+@", path.read_text()), path


def test_no_image_names_a_registry() -> None:
    """A host has a dot or a port before the first slash."""
    text = (DEPLOY / "Containerfile").read_text() + json.dumps(compose())
    images = [service["image"] for service in compose()["services"].values()]
    images += re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert images
    for image in images:
        host, slash, _ = image.partition("/")
        assert not (slash and re.search(r"[.:]", host)), image


def test_the_image_runs_as_nobody_in_particular_and_from_the_lock_file() -> None:
    text = (DEPLOY / "Containerfile").read_text()

    assert "--require-hashes -r requirements.lock" in text
    assert re.findall(r"^USER (\S+)$", text, re.MULTILINE) == ["10001:10001"]
    assert pod_of("statefulset")["securityContext"]["runAsUser"] == 10001
