#!/bin/sh
# Gives each worker's core one queue of a network card: receive queue i interrupts CPU i of the list,
# and CPU i sends on transmit queue i (XPS). A card with one queue is spread over all of them (RPS).
#
#   portcullis-nic.sh INTERFACE
#
# QUEUES  number of queues to ask for first (ethtool -L combined); empty: as they are
# CPUS    the workers' CPUs as taskset(1) writes them; empty: those of the card's NUMA node first
# SYS, PROC  other places of /sys and /proc, for tests
#
# Nothing here outlives a restart, or the card's driver being loaded again. To take it back: reboot, or
# write 0 into rps_cpus and xps_cpus and all CPUs into /proc/irq/N/smp_affinity_list.
set -eu

nic=${1:?usage: portcullis-nic.sh INTERFACE}
sys=${SYS:-/sys}
proc=${PROC:-/proc}
queues="$sys/class/net/$nic/queues"

say() { echo "portcullis-nic: $*"; }

[ -d "$queues" ] || { say "no interface $nic"; exit 1; }

# "0-2,5" as "0 1 2 5"
expand() {
    for range in $(echo "$1" | tr ',' ' '); do
        seq "${range%-*}" "${range#*-}"
    done | tr '\n' ' '
}

# A mask of CPUs, as sysfs wants it: groups of 32 bits in hexadecimal, the highest first.
mask() {
    highest=0
    for cpu in $1; do [ "$cpu" -gt "$highest" ] && highest=$cpu; done
    group=$((highest / 32))
    text=
    while [ "$group" -ge 0 ]; do
        bits=0
        for cpu in $1; do
            [ $((cpu / 32)) -eq "$group" ] && bits=$((bits | (1 << (cpu % 32))))
        done
        text="$text${text:+,}$(printf %08x "$bits")"
        group=$((group - 1))
    done
    echo "$text"
}

# A driver may manage its interrupts itself and refuse; that is no reason to stop.
set_to() {
    if ! { echo "$1" >"$2"; } 2>/dev/null; then
        say "refused: $1 > $2"
    fi
}

if [ -n "${QUEUES:-}" ] && command -v ethtool >/dev/null; then
    ethtool -L "$nic" combined "$QUEUES" || say "$nic keeps its number of queues"
fi

online=$(expand "$(cat "$sys/devices/system/cpu/online")")
if [ -n "${CPUS:-}" ]; then
    cpus=$(expand "$CPUS")
else
    node=$(cat "$sys/class/net/$nic/device/numa_node" 2>/dev/null || echo -1)
    near=
    if [ "$node" -ge 0 ]; then
        near=$(expand "$(cat "$sys/devices/system/node/node$node/cpulist")")
    fi
    cpus=$near
    for cpu in $online; do
        case " $near " in *" $cpu "*) ;; *) cpus="$cpus $cpu" ;; esac
    done
fi

rx=$(find "$queues" -maxdepth 1 -name 'rx-*' | wc -l)
if [ "$rx" -eq 1 ]; then
    # One queue: its CPU only takes packets off the card, and the flow's own CPU does the rest.
    set_to "$(mask "$cpus")" "$queues/rx-0/rps_cpus"
    set_to "$(cat "$proc/sys/net/core/rps_sock_flow_entries")" "$queues/rx-0/rps_flow_cnt"
    say "$nic: one queue, spread over CPUs $cpus"
    exit 0
fi

device="$sys/class/net/$nic/device"
[ -d "$device/msi_irqs" ] || device="$device/.."
# The names that /proc/interrupts gives to receiving queues, as src/tune/detect/nic.rs knows them.
irqs=$(ls "$device/msi_irqs" | sort -n | while read -r irq; do
    grep -iE "^ *$irq:.*[ ][^ ]*(rx|comp|input|ntfy|-q)[^ ]*\$" "$proc/interrupts" >/dev/null && echo "$irq"
done || true)

set -- $cpus
for irq in $irqs; do
    [ $# -gt 0 ] || set -- $cpus
    set_to "$1" "$proc/irq/$irq/smp_affinity_list"
    shift
done
set -- $cpus
queue=0
while [ -d "$queues/tx-$queue" ]; do
    [ $# -gt 0 ] || break
    set_to "$(mask "$1")" "$queues/tx-$queue/xps_cpus"
    shift
    queue=$((queue + 1))
done
say "$nic: $rx queues, interrupts $(echo $irqs | wc -w), CPUs $cpus"
