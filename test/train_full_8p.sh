#!/usr/bin/env bash
# The full training on eight cards: 500 epochs, batch 32 per card. --help lists the options.
[ -n "${BASH_VERSION:-}" ] || exec bash -- "$0" "$@"
set -euo pipefail
# shellcheck source=/dev/null
. "$(dirname -- "${BASH_SOURCE[0]}")/training.sh"

# shellcheck disable=SC2034 # read by training.sh
SUMMARY='The full training on eight cards: 500 epochs, batch 32 per card, lr by train.py'\''s rule.'
train acc 8 500 32 '' "$@"
