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

# NAME [--set KEY=VALUE...]
run() {
    name=$1 dir=$runs/$1
    shift
    case " $wanted " in *" $name "* | "  ") ;; *) return 0 ;; esac
    if [ -e $out/$name.json ]; then return 0; fi
    if [ -e "$dir.partial/checkpoint.bin" ]; then
        $bin resume "$dir.partial" --threads 1
    elif [ ! -e "$dir/report.html" ]; then
        rm -rf "$dir.partial"
        $bin sim scenarios/emotion-split-lora.toml --threads 1 --out "$dir" \
            --set "run.name=$name" --set run.num-server-rounds=3 "$@"
    fi
    cp "$dir/summary.json" $out/$name.json
}

run split-lora
run fedavg-lora --set method.name=fedavg-lora
run sl --set method.name=sl
run sfl --set method.name=sfl
run split-lora-int8 --set method.traffic=int8

# What the two blocks of a device do while the server's four learn.
for half in backward frozen forward-gradient; do
    run $half --set method.cut=2 --set method.backward=$half
done
