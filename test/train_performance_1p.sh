#!/usr/bin/env bash
# The performance run on one card: 10 epochs, batch 256, lr 3e-4. --help lists the options.
[ -n "${BASH_VERSION:-}" ] || exec bash -- "$0" "$@"
set -euo pipefail
# shellcheck source=/dev/null
. "$(dirname -- "${BASH_SOURCE[0]}")/training.sh"

# shellcheck disable=SC2034 # read by training.sh
SUMMARY='The performance run on one card: 10 epochs, batch 256, lr 3e-4.'
train perf 1 10 256 3e-4 "$@"
