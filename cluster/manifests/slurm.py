"""A batch script of Slurm: one Ray node on each of Slurm's, the driver on the first, and the job
queued again when its time is over before the run is."""

import math
import re
from dataclasses import dataclass

from manyfaces.cluster.manifests.nodes import TRAIN, Nodes, refuse_secrets
from manyfaces.configs.errors import UserError
from manyfaces.configs.load import dump
from manyfaces.configs.paths import absolute
from manyfaces.configs.schema import Config

BEFORE_END_S = 120
"""So much earlier than `cluster.grace_s` before its end the job is told: Slurm's clock for it goes
by the minute, and Ray has to end as well."""
_LIMIT = re.compile(
    r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?", re.ASCII
)


@dataclass(frozen=True)
class Settings:
    """What a batch script needs that no configuration of a run says."""

    time: str
    partition: str | None = None
    account: str | None = None
    setup: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


SCRIPT = """\
#!/bin/bash
# A run of manyfaces on Slurm. Read it, then
#   sbatch FILE
#   tail -F @NAME@-JOBID.log
#   scancel --batch --signal=USR1 JOBID    # saves a checkpoint and queues the job again
#   scancel --batch --signal=TERM JOBID    # saves a checkpoint and ends
# Submit it again, and the run goes on from its newest checkpoint.
#
#SBATCH --job-name=@NAME@
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --time=@TIME@
#SBATCH --nodes=@NODES@
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=@CPUS@
@GPU_LINE@
# One Ray node has a whole machine: `ray symmetric-run` refuses one on which another Ray runs.
#SBATCH --exclusive
#SBATCH --mem=0
# The script is told so long before the time is over that a checkpoint can be saved, and queues the
# job again. Preemption by requeueing does the same where PreemptParameters has send_user_signal.
#SBATCH --signal=B:USR1@@BEFORE_S@
#SBATCH --requeue
@MORE@
@SETUP@
set -uo pipefail
# Ray takes commands from whoever has the token, which is in ~/.ray/auth_token on every node.
export RAY_AUTH_MODE=token
ray get-auth-token --generate > /dev/null || exit
# Python may take minutes to load from a file system that all nodes share.
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300

# The batch script and the driver run on the first node, so that a signal finds the driver.
state=$(mktemp -d) || exit
trap 'rm -rf "$state"' EXIT
cat > "$state/config.yaml" << 'END_OF_CONFIG'
@CONFIG@END_OF_CONFIG

# Its name has to resolve to the same address on all nodes, itself included, not to 127.0.0.1.
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$head:$((20000 + SLURM_JOB_ID % 10000))  # a port of this job's own

# What a signal asks for: "again" queues the job again, "end" does not.
asked=
step=
ask() {
  asked=$1
  if [[ -s $state/pid ]]; then
    kill -s "$2" "$(< "$state/pid")"
  elif [[ -n $step ]]; then  # nothing has been trained that a checkpoint could save
    kill "$step"
  fi
}
trap 'ask again USR1' USR1
trap 'ask end TERM' TERM

# Another cluster that this job was submitted from is not its own.
unset RAY_ADDRESS RAY_API_SERVER_ADDRESS RAY_JOB_CONFIG_JSON_ENV_VAR

# srun ends with the highest exit code of all nodes: the driver's own is kept in a file.
srun --ntasks-per-node=1 --cpus-per-task=@CPUS@ --kill-on-bad-exit=1 \\
  ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" \\
  --num-cpus=@CPUS@ --num-gpus=@GPUS@ --dashboard-host=127.0.0.1 --disable-usage-stats -- \\
  bash -c '@TRAIN@ "$0/config.yaml" --address auto & echo $! > "$0/pid"
    wait $!; code=$?; echo $code > "$0/code"; exit $code' "$state" &
step=$!
# A signal that came before the step had a number has ended nothing yet.
if [[ -n $asked && ! -s $state/pid ]]; then
  kill "$step"
fi
wait "$step"
code=$?
while kill -0 "$step" 2> /dev/null; do  # a signal has interrupted the wait
  wait "$step"
  code=$?
done
if [[ -s $state/code ]]; then
  code=$(< "$state/code")
elif [[ -n $asked ]]; then
  code=75
fi

# 75: the run was asked to stop, and goes on from its checkpoint.
if [[ $code == 75 && $asked != end ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def batch_script(config: Config, nodes: Nodes, settings: Settings) -> str:
    """The script, with the configuration in it.

    Raises `UserError` for a time limit that cannot be read or is too short to save a checkpoint
    in, and for credentials in the configuration.
    """
    refuse_secrets(config, "set them in the environment of sbatch, which hands it to the job")
    before_s = math.ceil(config.cluster.grace_s) + BEFORE_END_S
    if _seconds(settings.time) <= before_s:
        raise UserError(
            f"--time {settings.time}: the job would be asked to stop {before_s} s before its end "
            "(cluster.grace_s, and what Slurm and Ray need), which is at once; give it longer"
        )
    number = f"{nodes.least}-{nodes.most}" if nodes.may_change else f"{nodes.most}"
    more = [f"--partition={settings.partition}"] if settings.partition else []
    more += [f"--account={settings.account}"] if settings.account else []
    more += settings.options
    filled = {
        "NAME": config.run.name,
        "TIME": settings.time,
        "NODES": number,
        "CPUS": str(nodes.cpus),
        "GPUS": str(nodes.gpus),
        "GPU_LINE": f"#SBATCH --gpus-per-node={nodes.gpus}" if nodes.gpus else "# No GPUs.",
        "BEFORE_S": str(before_s),
        "MORE": "".join(f"#SBATCH {option}\n" for option in more),
        "SETUP": "".join(f"{line}\n" for line in settings.setup),
        "TRAIN": TRAIN,
        "CONFIG": dump(absolute(config)),
    }
    return re.sub(r"@([A-Z_]+)@", lambda found: filled[found[1]], SCRIPT)


def _seconds(limit: str) -> int:
    """A time limit as Slurm reads it, in seconds. Raises `UserError` for what is none."""
    found = _LIMIT.fullmatch(limit)
    if found is None:
        raise UserError(
            f"--time {limit}: is no time limit of Slurm; give HOURS:MINUTES:SECONDS or "
            "DAYS-HOURS:MINUTES:SECONDS, such as 24:00:00"
        )
    parts = [int(found[name] or 0) for name in ("first", "second", "third")]
    if found["days"] is not None:
        hours, minutes, seconds = parts
        return (int(found["days"]) * 24 + hours) * 3600 + minutes * 60 + seconds
    if found["third"] is not None:
        return parts[0] * 3600 + parts[1] * 60 + parts[2]
    return parts[0] * 60 + parts[1]
