#!/usr/bin/env bash
# The PSNR of trained weights on one card. --help lists the options.
[ -n "${BASH_VERSION:-}" ] || exec bash -- "$0" "$@"
set -euo pipefail
# shellcheck source=/dev/null
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<EOF
usage: bash test/${0##*/} --data_path=FOLDER --pth_path=FILE [--scale=N] [-- options of evaluate.py]

The PSNR of trained weights on Set5, protocol modelzoo, beside bicubic's.

  --data_path=FOLDER    the dataset folder that prepare.py filled
  --pth_path=FILE       the weights, e.g. best.pth
  --scale=N             2, 3 or 4 (default: 3)
  --help                this text

The output is kept in test/output/CARD/eval_CARD.log, CARD being ASCEND_DEVICE_ID (default 0).
EOF
}

data_path='' pth_path='' scale=3 extra=()
while (($#)); do
    case $1 in
    --data_path=*) data_path=${1#*=} && absolute data_path ;;
    --pth_path=*) pth_path=${1#*=} && absolute pth_path ;;
    --scale=*) scale=${1#*=} && require_number --scale "$scale" 1 ;;
    --help | -h) usage && exit 0 ;;
    --) shift && extra=("$@") && break ;;
    *) fail 2 "unknown option $1; --help lists the options (as --name=value)" ;;
    esac
    shift
done
[[ -n $data_path ]] || fail 2 "--data_path=FOLDER is missing: the folder that prepare.py filled"
[[ -n $pth_path ]] || fail 2 "--pth_path=FILE is missing: the weights, e.g. best.pth"

prepare
folder=$ROOT/test/output/$ASCEND_DEVICE_ID
log=$folder/eval_$ASCEND_DEVICE_ID.log
{ mkdir -p -- "$folder" 2>/dev/null && [[ -w $folder ]]; } ||
    fail 1 "cannot write in $folder; evaluate.py --data-path=FOLDER --weights=FILE needs no log"
set_aside "$log"
status=0
run_logged "$log" screen "$PYTHON" "$ROOT/evaluate.py" "--data-path=$data_path" \
    "--weights=$pth_path" "--scale=$scale" --protocol=modelzoo "${extra[@]}" || status=$?
((status == 0)) || explain_failure "$status" "$log" screen
exit "$status"
