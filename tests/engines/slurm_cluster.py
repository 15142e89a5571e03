"""A SLURM cluster on this machine: munge, slurmctld, and a slurmd on each machine of the lab."""

import json
import os
import re
from pathlib import Path

from lab import NETWORK, Machine, sh, wait_for

CONFIG = """
ClusterName=gvc
SlurmctldHost=head({network}.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire=5
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=1,requeue_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldTimeout=10
SlurmdTimeout=10
KillWait=30
InactiveLimit=0
MinJobAge=3600
ReturnToService=2
MaxArraySize=5
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
GresTypes=gpu
NodeName={nodes} CPUs=16 RealMemory=256000 Gres=gpu:2 State=UNKNOWN
PartitionName=normal Nodes={nodes} Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=60 DefMemPerCPU=1000
PartitionName=urgent Nodes={nodes} MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF DefMemPerCPU=1000
"""


def start(machines: dict[str, Machine]) -> None:
    """Start all daemons. The kernel ends them with the namespace of the script."""
    root = Path.cwd() / "slurm"
    root.mkdir(mode=0o755)
    values = {"root": root, "network": NETWORK, "nodes": ",".join(machines)}
    (root / "slurm.conf").write_text(CONFIG.format(**values))
    (root / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
    (root / "cgroup.conf").write_text("CgroupAutomount=no\n")
    (root / "munge.key").write_bytes(os.urandom(128))
    (root / "munge.key").chmod(0o400)
    os.environ["SLURM_CONF"] = str(root / "slurm.conf")
    munge = {"key-file": "munge.key", "socket": "munge.socket", "log-file": "munge.log", "pid-file": "munge.pid"}
    files = " ".join(f"--{option}={root}/{name}" for option, name in (munge | {"seed-file": "munge.seed"}).items())
    sh(f"munged --force --num-threads=10 {files}")
    sh("slurmctld")
    for machine in machines.values():
        start_node(machine)
    wait_for("two idle nodes", lambda: sh("sinfo -h -p normal -t idle -o %D", check=False) == str(len(machines)), 20)


def start_node(machine: Machine) -> None:
    """Start the slurmd of one machine."""
    machine.sh(f"SLURM_CONF={os.environ['SLURM_CONF']} slurmd -N {machine.name}")


def state(job: str | int) -> str:
    """Return the state of a job, such as RUNNING or COMPLETED."""
    return sh(f"squeue -h -t all -j {job} -o %T", check=False).split("\n")[0]


def restarts(job: str) -> int:
    """Return how often a job was queued again."""
    return int(re.search(r"Restarts=(\d+)", sh(f"scontrol show job {job}"))[1])  # type: ignore[index]


def seconds(job: str) -> int:
    """Return for how long a job has run."""
    return int(sh(f"squeue -h -j {job} -O TimeUsed:20 | awk -F: '{{print $(NF-1) * 60 + $NF}}'"))


def jobs() -> list[dict]:
    """Return all jobs that the controller knows."""
    return json.loads(sh("squeue -t all --json"))["jobs"]


def running() -> list[str]:
    """Return the numbers of the jobs that run, the oldest first."""
    return sorted(sh("squeue -h -r -t RUNNING -o %A").split(), key=int)
