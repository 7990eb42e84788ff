"""A RayJob of KubeRay: one object that makes a Ray cluster, runs the training on it and takes the
cluster away again."""

import math
import re
from importlib.metadata import version
from typing import Any

from manyfaces.cluster.jobs import STOP_WAIT, STOP_WAIT_MORE_S
from manyfaces.cluster.manifests.nodes import Nodes, refuse_secrets
from manyfaces.cluster.manifests.pods import FOLDER, HEAD, MORE_GRACE_S, Pods, Settings, scripts
from manyfaces.cluster.manifests.text import commented_yaml, dns_name
from manyfaces.cluster.manifests.volumes import Placed, placed
from manyfaces.configs.errors import UserError
from manyfaces.configs.load import dump
from manyfaces.configs.schema import Config

LONGEST_NAME = 47
"""Characters of a RayJob's name, to which KubeRay adds more."""
KEPT_S = 600
"""How long the cluster of a job that has ended stays, for whoever wants its logs."""


def rayjob(config: Config, nodes: Nodes, settings: Settings) -> str:
    """The manifest: a ConfigMap with the configuration and the scripts, and the RayJob.

    Raises `UserError` for an image that is not pinned, for paths that pods do not share, and for
    credentials in the configuration.
    """
    _refuse_unpinned(settings.image)
    refuse_secrets(
        config, "keep them in a Secret: --mlflow-secret NAME for MLflow, --store-secret NAME else"
    )
    name = _name(settings.name or config.run.name)
    place = placed(config, settings.claims)
    where = {"namespace": settings.namespace} if settings.namespace else {}
    labels = {"app.kubernetes.io/name": "manyfaces"}
    files = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{name}-files", **where, "labels": labels},
        "data": {"config.yaml": dump(place.config), **scripts(config.cluster.grace_s)},
    }
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name, **where, "labels": labels},
        "spec": _spec(config, nodes, settings, place, f"{name}-files"),
    }
    return commented_yaml([files, job], _head(name, settings), _comments(settings))


def _spec(
    config: Config, nodes: Nodes, settings: Settings, place: Placed, files: str
) -> dict[str, Any]:
    stop_wait_s = math.ceil(config.cluster.grace_s + STOP_WAIT_MORE_S)
    spec: dict[str, Any] = {
        "submissionMode": "K8sJobMode",
        "entrypoint": f"sh {FOLDER}/train.sh",
        "runtimeEnvYAML": f'env_vars:\n  {STOP_WAIT}: "{stop_wait_s}"\n',
        "metadata": {"run": config.run.name},
        "backoffLimit": settings.retries,
    }
    if settings.deadline_hours is not None:
        spec["activeDeadlineSeconds"] = math.ceil(settings.deadline_hours * 3600)
    spec |= {"shutdownAfterJobFinishes": True, "ttlSecondsAfterFinished": KEPT_S}
    auth: dict[str, Any] = {"mode": "token"}
    if settings.token_secret:
        auth["secretName"] = settings.token_secret
    cluster: dict[str, Any] = {"rayVersion": version("ray"), "authOptions": auth}
    if nodes.may_change:
        cluster["enableInTreeAutoscaling"] = True
        cluster["autoscalerOptions"] = {"version": "v2", "idleTimeoutSeconds": 300}
    grace_s = math.ceil(config.cluster.grace_s) + MORE_GRACE_S
    pods = Pods(settings, place, files, grace_s)
    cluster["headGroupSpec"] = {
        # No worker is placed on the head, which has to outlive them.
        "rayStartParams": {"num-cpus": "0"},
        "template": pods.template("ray-head", "stop.sh", HEAD, 1),
    }
    cluster["workerGroupSpecs"] = [
        {
            "groupName": "workers",
            "replicas": nodes.least,
            "minReplicas": nodes.least,
            "maxReplicas": nodes.most,
            "rayStartParams": {"num-cpus": str(nodes.cpus)},
            "template": pods.worker(nodes),
        }
    ]
    return spec | {"rayClusterSpec": cluster}


def _refuse_unpinned(image: str) -> None:
    name, _, digest = image.partition("@")
    tag = name.rpartition("/")[2].partition(":")[2]
    if digest and not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise UserError(f"--image {image}: its digest is not sha256: and 64 hexadecimal digits")
    if not digest and tag in ("", "latest"):
        raise UserError(
            f"--image {image}: pods that start later may get another image by this name; give a "
            "tag, or best the digest: IMAGE@sha256:... (`docker buildx imagetools inspect` shows "
            "it)"
        )


def is_by_digest(image: str) -> bool:
    """Whether the image is named by the digest of its bytes."""
    return "@sha256:" in image


def _name(run: str) -> str:
    """This name as a RayJob may have it. Raises `UserError` for one that is too long."""
    name = dns_name(run)
    if len(name) > LONGEST_NAME:
        raise UserError(
            f"{run}: a RayJob's name has at most {LONGEST_NAME} characters; give a "
            "shorter one by --name"
        )
    return name


def _head(name: str, settings: Settings) -> str:
    within = f" -n {settings.namespace}" if settings.namespace else ""
    return f"""\
A run of manyfaces on Kubernetes, for KubeRay 1.6 or later. Read it, then
  kubectl apply -f FILE{within}
  kubectl get rayjob {name}{within} --watch
  kubectl logs job/{name}{within} --follow
  kubectl delete rayjob {name}{within}    # has a checkpoint saved first
Applied again after that, it goes on from the newest checkpoint of the run."""


def _comments(settings: Settings) -> dict[str, str]:
    token = (
        f"The Secret {settings.token_secret} has to have a key auth_token (`ray get-auth-token`)."
        if settings.token_secret
        else "KubeRay makes a Secret with the token, named as the cluster."
    )
    return {
        "backoffLimit": (
            "After a failure, a lost head or a stop (exit code 75) a new cluster goes on from the\n"
            "newest checkpoint, at most so often."
        ),
        "runtimeEnvYAML": "How long Ray waits for the last checkpoint of a job that it stops.",
        "shutdownAfterJobFinishes": "The cluster goes when the job has ended, its logs with it.",
        "authOptions": (
            "KubeRay sets RAY_AUTH_MODE=token and RAY_AUTH_TOKEN by secretKeyRef in every\n"
            f"container of Ray's. {token}"
        ),
        "enableInTreeAutoscaling": (
            "The job starts with minReplicas; Ray asks for more up to maxReplicas."
        ),
        "terminationGracePeriodSeconds": (
            f"cluster.grace_s and {MORE_GRACE_S} s more. Clouds may end spot nodes sooner: 25 s on "
            "Google's, 30 s on\nAzure's, 120 s on Amazon's."
        ),
        "securityContext": (
            "The image's user (1000 in that of `manyfaces manifest dockerfile`) writes run.dir."
        ),
        "sizeLimit": "Counts as memory of the container.",
        "claimName": "It has to be ReadWriteMany: every pod mounts it.",
    }
