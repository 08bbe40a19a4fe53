#!/bin/sh
# The orders a server can serve its devices in: on 1,000 instances with its load swept from 0.1 to 2, and in
# the setting of arXiv 2506.02940. Each instance's makespans are kept.
set -e
cargo run --release -p undertone-cli -- schedule --sweep 1000 --seed 7 --out bench/results/schedule-sweep.csv
cargo run --release -p undertone-methods --example paper_setting | tee bench/results/schedule-paper.csv
