"""What `manyfaces submit` makes sure of before anything starts."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from manyfaces.configs.errors import UserError
from manyfaces.train.cli.output import console, fail, note, say

if TYPE_CHECKING:
    from manyfaces.cluster.jobs import Jobs
    from manyfaces.configs.schema import Config

CHECKS = "manyfaces.train.node_check"
URI_VARIABLE = "MLFLOW_TRACKING_URI"
REMEDY = (
    "set it in the environment of the cluster's nodes instead (MLFLOW_TRACKING_USERNAME and "
    "MLFLOW_TRACKING_PASSWORD, AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ...)"
)


def with_tracking_uri(tree: "Config", environment: Mapping[str, str]) -> "Config":
    """The same with the MLflow server that this environment names, if the configuration names
    none. Raises `UserError` where its URL holds credentials."""
    uri = environment.get(URI_VARIABLE)
    if tree.tracking.uri or not uri:
        return tree
    from manyfaces.configs.redact import redact

    if redact(uri) != uri:
        raise UserError(
            f"{URI_VARIABLE}: a secret stands in it, which would travel with the job; {REMEDY}"
        )
    return tree.model_copy(update={"tracking": tree.tracking.model_copy(update={"uri": uri})})


def refuse_secrets(tree: "Config") -> None:
    """Raise `UserError` for a configuration with a secret in it: the cluster keeps the job's files,
    and whoever may submit a job can read them."""
    from manyfaces.configs.secrets import keys_with_secrets

    if keys := keys_with_secrets(tree):
        raise UserError(
            f"{', '.join(keys)}: a secret stands in it, which would travel with the job; {REMEDY}"
        )


def check_nodes(jobs: "Jobs", shipped: Mapping[str, Any], tree: "Config") -> None:
    """Have every node looked at. Prints a line for each thing that is wrong and raises `UserError`
    with the last."""
    from manyfaces.cluster.fit import fit, requirements

    names = [each.name for each in requirements()]
    told = "checking   versions, resources, the dataset and the run's folder on every node"
    if console.is_terminal:
        with console.status(told):
            found = jobs.probe(shipped, CHECKS, names)
    else:
        say(told)
        found = jobs.probe(shipped, CHECKS, names)
    result = fit(found, tree.cluster)
    for line in result.notes:
        note(line)
    if result.faults:
        *first, last = result.faults
        for line in first:
            fail(line)
        raise UserError(last)
    say(f"checked    {result.summary}")
