#!/bin/sh
# Side-tuning and its baseline on real data; the summaries, with what the audit of each run's own traffic
# found, are kept under bench/results/side-tuning/, with the table of those that are compared.
#   bench/side_tuning.sh [NAME...]       only these runs
set -e
bin=${UNDERTONE:-target/release/undertone}
out=bench/results/side-tuning
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p $out
names=$*

wanted() {
    case " $names " in *" $1 "* | "  ") ;; *) return 1 ;; esac
}

# NAME DATASET LENGTH [--set KEY=VALUE...]
run() {
    name=$1 data=../shared/data/$2 length=$3
    shift 3
    wanted "$name" || return 0
    $bin sim scenarios/emotion-side-tuning.toml --threads 1 --out "$scratch/$name" --set "run.name=$name" \
        --set "data.train=$data/train.jsonl.zst" --set "data.test=$data/test.jsonl.zst" \
        --set "model.max_seq_length=$length" "$@"
    if [ -d "$scratch/$name/traffic" ]; then
        $bin audit "$scratch/$name"
    fi
    cp "$scratch/$name/summary.json" $out/$name.json
    case $name in compare-*) ;; *) rm -rf "${scratch:?}/$name" ;; esac
}

# One device that holds all rows is the centralised side-tuning of the papers.
one='--set fleet.devices=1 --set cohort.min-available-nodes=1 --set cohort.fraction-train=1.0 --set data.partition={kind="iid"}'
epochs='--set method.epochs=3'
short="$one $epochs --set run.num-server-rounds=2"
long="$one $epochs --set run.num-server-rounds=4"
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

# A hundred devices at Dirichlet 0.1; and one that holds all rows, by cross-entropy on the true labels.
run emotion-federated emotion 48
run emotion-exact emotion 48 $short --set 'method.loss="exact"' --set audit.record=false
# Phones and boards with different backbones.
if wanted emotion-backbones; then
    $bin sim scenarios/emotion-backbones.toml --threads 1 --out "$scratch/backbones"
    cp "$scratch/backbones/summary.json" $out/emotion-backbones.json
fi

# Everything beside everything else: two passes of each device over its rows where it trains or sends anew, and
# one where it sends once.
compare='--set audit.record=false --set run.num-server-rounds=2'
run compare-1-side-tuning-of-100 emotion 48 --set audit.record=false
run compare-2-side-tuning-of-one emotion 48 $short --set audit.record=false
run compare-3-mobillm emotion 48 $one $compare --set train.weight_decay=0.0 \
    --set 'method={name="mobillm",form={kind="mlp",hidden=256}}'
tuned="$one $compare --set method={name=\"fedavg-lora\"} --set train.weight_decay=0.0 --set model.squash=3.0"
run compare-4-lora emotion 48 $tuned --set train.learning_rate=2e-3 \
    --set 'peft={kind="lora",r=8,lora_alpha=16,target_modules=["query","value"]}'
run compare-5-full emotion 48 $tuned --set train.learning_rate=2e-4 --set 'peft={kind="full"}'
if [ -d "$scratch/compare-5-full" ]; then
    $bin report "$scratch"/compare-* --out "${REPORT:-$scratch/report.html}" | sed '/^$/,$d' > $out/compare.txt
fi

# What privacy costs.
once="$one $epochs $small --set run.num-server-rounds=1"
run emotion-plain emotion 48 $once
run emotion-mixed emotion 48 $once --set 'method.privacy={mode="mixed"}'
for epsilon in 1.0 2.0 3.0; do
    run emotion-response-$epsilon emotion 48 $once \
        --set "method.privacy={mode=\"randomized-response\",epsilon=$epsilon}"
    run emotion-noise-$epsilon emotion 48 $once --set "method.privacy={mode=\"noise\",epsilon=$epsilon}"
done

# What a language model's traffic says: ten devices of a hundred, two passes of the server.
run shakespeare-language shakespeare 64 --set model.path=../shared/models/TinyStories-656K \
    --set model.task=causal-lm --set 'data.partition={kind="iid"}' --set cohort.fraction-train=0.1 \
    --set run.num-server-rounds=1 $small
