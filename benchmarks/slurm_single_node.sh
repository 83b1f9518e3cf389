#!/bin/sh
# Set up a real one-node SLURM for tests/encode/test_real_slurm.py, on a Debian machine without systemd:
# install it, configure it, start it, and wait until it accepts jobs. Run as root, on a dedicated
# machine or container: it writes /etc/slurm/slurm.conf. It can be run repeatedly.
#
#     sh benchmarks/slurm_single_node.sh [start|stop|status]
#
# `stop` cancels root's jobs and ends the daemons. SLURM_CPUS is the number of cores that the node
# offers (default: all), SLURM_MEMORY its memory in MB (default: nine tenths). Jobs run as the user who
# submits them, which may be root.
set -eu

what=${1:-start}
node=$(hostname -s)
cpus=${SLURM_CPUS:-$(nproc)}
memory=${SLURM_MEMORY:-$(awk '/^MemTotal/ { print int($2 / 1024 * 0.9) }' /proc/meminfo)}
state=/var/lib/slurm-single
run=/run/slurm-single
conf=/etc/slurm/slurm.conf

running() { [ -s "$1" ] && kill -0 "$(cat "$1" 2>/dev/null)" 2>/dev/null; }

stop() {
    for pid in $run/slurmd.pid $run/slurmctld.pid /run/munge/munged.pid; do
        running $pid || continue
        kill "$(cat $pid)"
        for _ in $(seq 100); do running $pid || break; sleep 0.1; done
        ! running $pid || kill -9 "$(cat $pid)"
        rm -f $pid
    done
}

installed() { for command in slurmctld slurmd sbatch munged; do command -v $command || return; done; }

install() {
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        # Otherwise the packages start the daemons before they are configured.
        printf '#!/bin/sh\nexit 101\n' > $policy
        chmod +x $policy
        trap 'rm -f $policy' EXIT
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge
}

case $what in
    start) ;;
    status)
        sinfo -h -o '%N %T %c cores %m MB'
        exit
        ;;
    stop)
        if running $run/slurmctld.pid; then
            for jobs in PENDING RUNNING; do scancel --user "$(id -un)" --state $jobs || true; done
            sleep 1
        fi
        stop
        exit 0
        ;;
    *)
        echo "usage: $0 [start|stop|status]" >&2
        exit 2
        ;;
esac

installed >/dev/null || install

mkdir -p $state/ctld $state/slurmd $run /run/munge /var/log/munge /etc/slurm
chown munge:munge /run/munge /var/log/munge /var/lib/munge
chmod 0755 /run/munge
[ -s /etc/munge/munge.key ] || /usr/sbin/mungekey --create
chown munge:munge /etc/munge/munge.key
chmod 0400 /etc/munge/munge.key
getent hosts "$node" >/dev/null || echo "127.0.0.1 $node" >> /etc/hosts

cat > $conf.new <<CONF
ClusterName=single
SlurmctldHost=$node
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=100000
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$state/jobcomp.txt
JobAcctGatherType=jobacct_gather/none
StateSaveLocation=$state/ctld
SlurmdSpoolDir=$state/slurmd
SlurmctldPidFile=$run/slurmctld.pid
SlurmdPidFile=$run/slurmd.pid
SlurmctldLogFile=$state/slurmctld.log
SlurmdLogFile=$state/slurmd.log
ReturnToService=2
KillWait=5
MinJobAge=600
InactiveLimit=0
SlurmctldTimeout=60
SlurmdTimeout=60
NodeName=$node CPUs=$cpus Boards=1 SocketsPerBoard=1 CoresPerSocket=$cpus ThreadsPerCore=1 RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=$node Default=YES MaxTime=INFINITE State=UP
CONF
if ! cmp -s $conf.new $conf; then
    stop
    mv $conf.new $conf
else
    rm $conf.new
fi

running /run/munge/munged.pid || su -s /bin/sh munge -c /usr/sbin/munged
running $run/slurmctld.pid || slurmctld
running $run/slurmd.pid || slurmd
for _ in $(seq 60); do
    case $(sinfo -h -o %t 2>/dev/null || true) in
        idle | mix | alloc) sinfo -h -o '%N %T %c cores %m MB'; exit 0 ;;
        down* | drain*) scontrol update nodename="$node" state=resume 2>/dev/null || true ;;
    esac
    sleep 0.5
done
echo "SLURM did not start; see $state/slurmctld.log and $state/slurmd.log" >&2
tail -5 $state/slurmctld.log $state/slurmd.log >&2
exit 1
