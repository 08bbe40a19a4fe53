#!/bin/sh
# A model in two parts on real data: emotion on six unequal devices, with the baselines, with smaller traffic,
# and with what a device's own blocks do, three rounds each. Summaries are kept under bench/results/split/; a run whose summary
# is there is not run again, and one that was interrupted goes on from its last round.
#   bench/split.sh [NAME...]       only these runs
set -e
bin=${UNDERTONE:-target/release/undertone}
runs=${RUNS:-runs/split}
out=bench/results/split
mkdir -p "$runs" $out
wanted=$*

# NAME ROUNDS [--set KEY=VALUE...]
run() {
    name=$1 rounds=$2 dir=$runs/$1
    shift 2
    case " $wanted " in *" $name "* | "  ") ;; *) return 0 ;; esac
    if [ -e $out/$name.json ]; then return 0; fi
    if [ -e "$dir.partial/checkpoint.bin" ]; then
        $bin resume "$dir.partial" --threads 1
    elif [ ! -e "$dir/report.html" ]; then
        rm -rf "$dir.partial"
        $bin sim scenarios/emotion-split-lora.toml --threads 1 --out "$dir" \
            --set "run.name=$name" --set "run.num-server-rounds=$rounds" "$@"
    fi
    cp "$dir/summary.json" $out/$name.json
}

run split-lora 3
run fedavg-lora 3 --set method.name=fedavg-lora
run sl 3 --set method.name=sl
run sfl 3 --set method.name=sfl
run split-lora-int8 3 --set method.traffic=int8

# What the two blocks of a device do while the server's four learn.
for rounds in 3 6; do
    for half in backward frozen forward-gradient; do
        run $half-$rounds $rounds --set method.cut=2 --set method.backward=$half
    done
done
run forward-gradient-6-rate-10 6 --set method.cut=2 --set method.backward=forward-gradient \
    --set method.forward_gradient.rate=10.0
