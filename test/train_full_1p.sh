#!/usr/bin/env bash
# The full training on one card: 500 epochs, batch 32, lr 1e-4. --help lists the options.
[ -n "${BASH_VERSION:-}" ] || exec bash -- "$0" "$@"
set -euo pipefail
# shellcheck source=/dev/null
. "$(dirname -- "${BASH_SOURCE[0]}")/training.sh"

# shellcheck disable=SC2034 # read by training.sh
SUMMARY='The full training on one card: 500 epochs, batch 32, lr 1e-4.'
train acc 1 500 32 1e-4 "$@"
