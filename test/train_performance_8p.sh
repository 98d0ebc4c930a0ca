#!/usr/bin/env bash
# The performance run on eight cards: 10 epochs, batch 256 per card. --help lists the options.
[ -n "${BASH_VERSION:-}" ] || exec bash -- "$0" "$@"
set -euo pipefail
# shellcheck source=/dev/null
. "$(dirname -- "${BASH_SOURCE[0]}")/training.sh"

# shellcheck disable=SC2034 # read by training.sh
SUMMARY='The performance run on eight cards: 10 epochs, batch 256 per card, lr by train.py'\''s rule.'
train perf 8 10 256 '' "$@"
