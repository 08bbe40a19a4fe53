#!/bin/sh
# Training by forward passes on real data, and what it is compared with; summaries are kept under
# bench/results/fwdllm/.
#   bench/fwdllm.sh [NAME...]       only these runs
set -e
bin=${UNDERTONE:-target/release/undertone}
out=bench/results/fwdllm
scratch=${SCRATCH:-$(mktemp -d)}
mkdir -p $out "$scratch"
wanted=$*

# NAME SCENARIO [--set KEY=VALUE...]
run() {
    name=$1 scenario=scenarios/$2.toml
    shift 2
    case " $wanted " in *" $name "* | "  ") ;; *) return 0 ;; esac
    rm -rf "${scratch:?}/$name" "$scratch/$name.partial"
    $bin sim "$scenario" --threads 1 --out "$scratch/$name" --set "run.name=$name" "$@"
    # Of a thousand rounds those that were measured.
    python3 -c 'import json, sys
summary = json.load(open(sys.argv[1]))
summary["curve"] = [point for point in summary["curve"] if point.get("loss") is not None]
json.dump(summary, open(sys.argv[2], "w"), indent=1)' "$scratch/$name/summary.json" $out/$name.json
}

# LoRA-XS behind a head that learns from its exact gradient; the head alone is the control.
for seed in 7 8 9; do
    run emotion-$seed emotion-fwdllm --set run.seed=$seed
    run emotion-frozen-$seed emotion-fwdllm --set run.seed=$seed --set method.head_rounds=1100 \
        --set 'peft={kind="head"}'
done
# The same passes with a direction for a whole batch; the same perturbations with eight of them a batch.
run emotion-batch-1 emotion-fwdllm --set method.perturb=batch
run emotion-batch-8 emotion-fwdllm --set method.perturb=batch --set method.perturbations=8
# Discriminative sampling: of five candidates the one along the gradient of the round before.
run emotion-keep emotion-fwdllm --set method.perturb=batch --set method.keep=0.2
# The same trainables and batches by backpropagation.
run emotion-backward emotion-fwdllm --set 'method={name="fedsgd"}' \
    --set 'fleet.profiles={"pixel-7-pro"=1}'

# A head of 1,540 parameters: 20,000 perturbations, by the paper's devices and data.
head='--set method.head=perturbed --set cohort.fraction-train=0.1 --set run.num-server-rounds=20'
dirichlet='--set data.partition={kind="dirichlet",alpha=1.0,min_rows=1}'
run agnews-head agnews-fwdllm $head
run agnews-head-dirichlet agnews-fwdllm $head $dirichlet
run agnews-closed-form agnews-fwdllm
run agnews-closed-form-dirichlet agnews-fwdllm $dirichlet
# The same on phones that only infer, on their CPU and on their NPU, and by backpropagation.
run agnews-head-cpu agnews-fwdllm $head --set 'fleet.profiles={"pixel-7-pro-forward-cpu"=1}'
run agnews-head-npu agnews-fwdllm $head --set 'fleet.profiles={"pixel-7-pro-forward-npu"=1}'
run agnews-fedsgd agnews-fwdllm --set cohort.fraction-train=0.1 --set run.num-server-rounds=20 \
    --set 'method={name="fedsgd"}'
run agnews-fedavg agnews-fwdllm --set cohort.fraction-train=0.1 --set run.num-server-rounds=20 \
    --set 'method={name="fedavg-lora"}' --set train.local_epochs=1
# The whole model by backpropagation, twenty phones a round.
run agnews-full agnews-fwdllm --set cohort.fraction-train=0.02 --set run.num-server-rounds=10 \
    --set 'method={name="fedavg-lora"}' --set 'peft={kind="full"}' --set train.optim=adamw \
    --set train.learning_rate=5e-4 --set train.local_epochs=1 --set train.eval_every=5
# The paper's way of sending them.
run agnews-head-dense agnews-fwdllm $head --set method.uplink=dense

# The paper's own recipe: bottleneck adapters and head perturbed together, 100 phones a step, paced by D(g);
# with directions of each sequence's own, since 100,000 of whole batches take hours.
paper='--set peft={kind="bottleneck",bottleneck_size=24} --set cohort.fraction-train=0.1 --set train.learning_rate=0.01 --set train.eval_every=21'
run agnews-paper agnews-fwdllm $paper --set run.num-server-rounds=63 \
    --set 'method={name="fwdllm",perturb="sequences",pacing="variance",threshold=0.5,most_waves=2}'
# The arithmetic of the public code: central differences, one direction a batch, sent dense, filtered by tensors in
# every other round, paced by the variance of one tensor.
run agnews-public-code agnews-fwdllm $paper --set run.num-server-rounds=20 \
    --set 'method={name="fwdllm",estimator="difference",uplink="dense",keep=0.1,candidates="tensors",pacing="tensor-variance",checked="encoder.layer.5.output.dense.adapter_down.weight",threshold=0.1,most_waves=3,waves="one-batch"}'
