#!/usr/bin/env bash
# Start a SLURM of several nodes on this one host, for the tests alone.
#   start.sh FOLDER [NODES]     default 2 nodes, n1 and n2; print the path of its slurm.conf
# Whoever exports SLURM_CONF as that path talks to it. Everything lives in FOLDER: nothing of a SLURM that the
# machine may belong to is read or changed. Root is needed; packages are installed where apt allows.
# stop.sh FOLDER ends it.
set -euo pipefail
folder=${1:?give a folder}
nodes=${2:-2}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

[ "$(id -u)" = 0 ] || { echo "only root can start a SLURM" >&2; exit 1; }
for program in slurmctld slurmd sbatch munged; do
  command -v "$program" >/dev/null || missing=yes
done
if [ -n "${missing:-}" ]; then
  command -v apt-get >/dev/null || { echo "no SLURM here, and no apt to install it" >&2; exit 1; }
  export DEBIAN_FRONTEND=noninteractive
  # A machine whose policy starts services after installation must not start these: they would find no config.
  packages="slurmctld slurmd slurm-client munge"
  # shellcheck disable=SC2086
  { apt-get install -y -qq --no-install-recommends $packages ||
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends $packages; }; } >"$folder/apt.log" 2>&1 ||
    { echo "could not install SLURM; see $folder/apt.log" >&2; exit 1; }
fi

mkdir -p "$folder/state" "$folder/log"
host=$(hostname -s)

# munge signs every message between the daemons. It insists on folders that nobody else can write.
chmod 755 "$folder"
install -d -m 700 "$folder/munge"
install -d -m 755 "$folder/socket"
(umask 077 && head -c 1024 /dev/urandom >"$folder/munge/key")
munged --force --socket="$folder/socket/munge" --key-file="$folder/munge/key" --seed-file="$folder/munge/seed" \
  --pid-file="$folder/munge/pid" --log-file="$folder/munge/log" 2>"$folder/log/munged.txt" ||
  { cat "$folder/log/munged.txt" >&2; exit 1; }

# Ports in a row that nobody listens on, below those that Linux gives to clients (32768).
free_ports() {
  local first=$1 port
  for ((port = first; port <= first + nodes; port++)); do
    if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then return 1; fi
  done
}
first=$((26000 + RANDOM % 600 * 10))
until free_ports "$first"; do first=$((26000 + RANDOM % 600 * 10)); done

{
  cat <<CONF
ClusterName=i2i
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$first
SlurmctldPidFile=$folder/slurmctld.pid
SlurmctldLogFile=$folder/log/slurmctld.log
StateSaveLocation=$folder/state
SlurmUser=root
SlurmdUser=root
SlurmdPidFile=$folder/slurmd_%n.pid
SlurmdLogFile=$folder/log/slurmd_%n.log
SlurmdSpoolDir=$folder/spool_%n
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until the credential of its last attempt has run out: two minutes unless told.
AuthInfo=socket=$folder/socket/munge,cred_expire=5
# No cgroups, no MPI, no accounting: a container has none of them.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# The nodes claim eight cores each, so that several tasks fit on a small machine.
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=1,sched_min_interval=100000
ReturnToService=2
JobRequeue=1
KillWait=20
MinJobAge=600
# What runs in the first partition makes room for what is submitted to the second, and comes back.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=test Nodes=ALL Default=YES MaxTime=60 OverSubscribe=YES:8 PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=60 PriorityTier=2
CONF
  # The names do not resolve, as on many a cluster: only SLURM knows the address.
  for ((node = 1; node <= nodes; node++)); do
    echo "NodeName=n$node NodeHostname=$host NodeAddr=127.0.0.1 Port=$((first + node)) CPUs=8 RealMemory=4000"
  done
} >"$folder/slurm.conf"
cat >"$folder/cgroup.conf" <<CONF
CgroupAutomount=no
ConstrainCores=no
ConstrainDevices=no
ConstrainRAMSpace=no
CONF

export SLURM_CONF=$folder/slurm.conf
slurmctld -c -f "$SLURM_CONF"
for ((node = 1; node <= nodes; node++)); do
  mkdir -p "$folder/spool_n$node"
  slurmd -c -f "$SLURM_CONF" -N "n$node"
done
for _ in $(seq 150); do
  [ "$(sinfo --noheader --Node --states=idle --format=%N 2>/dev/null | wc -l)" -ge "$nodes" ] && break
  sleep 0.2
done
[ "$(sinfo --noheader --Node --states=idle --format=%N | wc -l)" -ge "$nodes" ] ||
  { echo "SLURM did not start; see $folder/log" >&2; exit 1; }
echo "$SLURM_CONF"
