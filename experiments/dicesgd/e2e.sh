#!/bin/sh
# DP-SGD and DiceSGD's modes on E2E.   usage: sh e2e.sh DATA_DIR OUTPUT
# Adam cancels the scale of C1, so the modes with the most noise are measured at one C1. Evaluates
# on the first 400 rows of the development set.
set -e
here=$(dirname "$0")
mkdir -p "$2"
head -n 401 "$1/e2e_nlg/devset.csv" > "$2/dev400.csv"
dpclip compare --config "$here/e2e.toml" --data "$1/e2e_nlg/trainset.csv" \
    --eval-data "$2/dev400.csv" --accept-conditional --epsilon 2,8 --seeds 3 \
    --output "$2/compare" --rules "$(paste -sd, "$here/e2e_rules.txt")"
cp "$2/compare/comparison.json" "$here/e2e.json"
