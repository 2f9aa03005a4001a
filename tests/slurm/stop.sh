#!/usr/bin/env bash
# End the SLURM that start.sh began in FOLDER, and whatever still runs in it.
#   stop.sh FOLDER
set -uo pipefail
folder=$(cd "${1:?give a folder}" && pwd) || exit 0
export SLURM_CONF=$folder/slurm.conf

end() { # the process whose id is in file $1, and wait until it is gone
  local pid
  [ -s "$1" ] || return 0
  pid=$(cat "$1")
  kill "$pid" 2>/dev/null || return 0
  for _ in $(seq 100); do
    kill -0 "$pid" 2>/dev/null || return 0
    sleep 0.1
  done
  kill -9 "$pid"
}

jobs=$(squeue --noheader --format=%A 2>/dev/null) || jobs=""
if [ -n "$jobs" ]; then
  # shellcheck disable=SC2086
  scancel --full --signal=KILL $jobs 2>/dev/null
  # shellcheck disable=SC2086
  scancel $jobs 2>/dev/null
  for _ in $(seq 50); do
    [ -z "$(squeue --noheader 2>/dev/null)" ] && break
    sleep 0.2
  done
fi
for file in "$folder"/slurmd_*.pid "$folder/slurmctld.pid" "$folder/munge/pid"; do
  end "$file"
done

# A step that SLURM could no longer end: whoever keeps a file of ours open, and all that it has started.
family() {
  local child
  echo "$1"
  for child in $(cat "/proc/$1/task/"*/children 2>/dev/null); do
    family "$child"
  done
}
for process in $(find /proc/[0-9]*/fd -lname "$folder/*" 2>/dev/null | cut -d/ -f3 | sort -u); do
  # shellcheck disable=SC2046
  [ "$process" = $$ ] || kill -9 $(family "$process") 2>/dev/null
done
exit 0
