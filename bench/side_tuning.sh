#!/bin/sh
# Side-tuning and its baseline on real data; the summaries, with what the audit of each run's own traffic
# found, are kept under bench/results/side-tuning/.
#   bench/side_tuning.sh [NAME...]       only these runs
set -e
bin=${UNDERTONE:-target/release/undertone}
out=bench/results/side-tuning
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p $out
wanted=$*

# NAME DATASET LENGTH [--set KEY=VALUE...]
run() {
    name=$1 data=../shared/data/$2 length=$3
    shift 3
    case " $wanted " in *" $name "* | "  ") ;; *) return 0 ;; esac
    $bin sim scenarios/emotion-side-tuning.toml --threads 1 --out "$scratch/$name" --set "run.name=$name" \
        --set "data.train=$data/train.jsonl.zst" --set "data.test=$data/test.jsonl.zst" \
        --set "model.max_seq_length=$length" "$@"
    if [ -d "$scratch/$name/traffic" ]; then
        $bin audit "$scratch/$name"
    fi
    cp "$scratch/$name/summary.json" $out/$name.json
    rm -rf "${scratch:?}/$name"
}

# One device that holds all rows is the centralised side-tuning of the papers.
one='--set fleet.devices=1 --set cohort.min-available-nodes=1 --set cohort.fraction-train=1.0 --set data.partition={kind="iid"} --set method.epochs=3'
short="$one --set run.num-server-rounds=2"
long="$one --set run.num-server-rounds=4"
cascade='--set train.learning_rate=2e-3'
small='--set method.form={kind="mlp",hidden=256} --set train.weight_decay=0.0'
head='--set method.head="trained" --set audit.record=false'

# The side network alone, and with the device's own head.
run emotion-cascade16 emotion 48 $long $cascade --set 'method.form={kind="cascade",r=16}'
run emotion-cascade64-head emotion 48 $long $cascade --set 'method.form={kind="cascade",r=64}' $head
run emotion-mlp emotion 48 $short
run emotion-mlp-head emotion 48 $long $head
run banking77-mlp banking77 48 $long
run banking77-mlp-head banking77 48 $long $head
run agnews-mlp ag_news 96 $long $small
run agnews-mlp-head ag_news 96 $long $small $head --set method.head_temperature=1.0

# A hundred devices at Dirichlet 0.1, and the baseline that sends every token.
run emotion-federated emotion 48
run emotion-mobillm emotion 48 $one --set audit.record=false --set run.num-server-rounds=2 \
    --set 'method={name="mobillm",form={kind="mlp",hidden=256}}'

# What privacy costs.
once="$one $small --set run.num-server-rounds=1"
run emotion-plain emotion 48 $once
run emotion-mixed emotion 48 $once --set 'method.privacy={mode="mixed"}'
for epsilon in 1.0 2.0 3.0; do
    run emotion-response-$epsilon emotion 48 $once \
        --set "method.privacy={mode=\"randomized-response\",epsilon=$epsilon}"
    run emotion-noise-$epsilon emotion 48 $once --set "method.privacy={mode=\"noise\",epsilon=$epsilon}"
done
